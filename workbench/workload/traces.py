"""Recorded arrivals: the trace files people have, and runs of our own.

| format | how it is known | unit of time |
| --- | --- | --- |
| BurstGPT | CSV: `Timestamp, Request tokens, Response tokens` | seconds |
| Azure LLM inference | CSV: `TIMESTAMP, ContextTokens, GeneratedTokens` | dates |
| Mooncake | JSONL: `timestamp, input_length, output_length` | milliseconds |
| a run's requests.jsonl | JSONL: `scheduled_s, prompt_tokens, output_tokens` | seconds |

Other columns may stand beside these. A file is read as a stream, and no further than the cut needs;
only the lines of a run, which stand in the order in which requests ended, are all read and sorted.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from workbench.errors import TraceError
from workbench.workload.arrivals import TraceReplay


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One recorded request: seconds since the start of the cut, and its lengths in tokens.

    A length is None where the trace has none: null, or the 0 that BurstGPT writes for a request
    that failed. The request arrived all the same.
    """

    offset_s: float
    prompt_tokens: int | None
    output_tokens: int | None


def read_trace(
    path: str | Path,
    *,
    start_s: float | None = None,
    end_s: float | None = None,
    speed: float = 1.0,
    limit: int | None = None,
) -> list[TraceRequest]:
    """The requests of a trace file, or of a run's folder, in the order of their times.

    The trace's time starts with its first request. Those from `start_s` (included) to `end_s`
    (excluded) are taken, at most `limit` of them; offsets count from `start_s` and are divided by
    `speed`. What stands behind the cut is not read, and not checked.

    Raises SpecError for a cut or speed that is none; TraceError, naming file, line and column, for
    a file of no known format, a missing column, a negative or unordered time, a broken line, and
    for a cut with no request in it.
    """
    return replay(
        TraceReplay(path=str(path), start_s=start_s, end_s=end_s, speed=speed, limit=limit)
    )


def replay(spec: TraceReplay) -> list[TraceRequest]:
    """What `spec` names, as `read_trace` reads it."""
    file = Path(spec.path)
    file = file / "requests.jsonl" if file.is_dir() else file
    try:
        requests = list(islice(_cut(_read(file), spec), spec.limit))
    except OSError as problem:
        raise TraceError(f"{file} cannot be read: {problem.strerror}") from None
    if not requests:
        raise TraceError(
            f"{file}: no request from start_s = {spec.start_s} to end_s = {spec.end_s}; "
            "widen the cut or give another file"
        )
    return requests


class _Request(NamedTuple):
    """A line as recorded: its time in seconds since the first."""

    at_s: float
    prompt_tokens: int | None
    output_tokens: int | None


class _Line(NamedTuple):
    """The number of a line, and the raw values of time, prompt and output tokens in it."""

    number: int
    values: tuple[Any, ...]


class _Format(NamedTuple):
    """The columns of time, prompt and output tokens; the unit of time and how it is read."""

    columns: tuple[str, str, str]
    time: Callable[[Any], float]
    per_second: float = 1
    in_order: bool = True


def _cut(requests: Iterable[_Request], spec: TraceReplay) -> Iterator[TraceRequest]:
    start = spec.start_s or 0.0
    for at_s, prompt_tokens, output_tokens in requests:
        if spec.end_s is not None and at_s >= spec.end_s:
            return
        if at_s >= start:
            yield TraceRequest((at_s - start) / spec.speed, prompt_tokens, output_tokens)


def _read(file: Path) -> Iterator[_Request]:
    with file.open("rb") as lines:
        first = next((line for line in lines if line.strip()), b"")
    if not first:
        raise TraceError(f"{file}, line 1: the file is empty")
    found, lines_of = _open_json(file, first) if first.startswith(b"{") else _open_csv(file)
    times = _converted(file, found, lines_of)
    if not found.in_order:
        times = iter(sorted(times, key=lambda request: request[0]))
    start: float | None = None
    for at, prompt_tokens, output_tokens in times:
        start = at if start is None else start
        # The difference first: a date in microseconds is exact, in seconds it is not.
        yield _Request((at - start) / found.per_second, prompt_tokens, output_tokens)


def _converted(file: Path, found: _Format, lines: Iterable[_Line]) -> Iterator[_Request]:
    """Checked lines, their times still in the unit and from the zero of the file."""
    previous: Any = None
    for number, values in lines:
        column = 0
        try:
            time = found.time(values[0])
            if found.in_order and previous is not None and time < previous:
                raise ValueError("is before the line above; sort the file by time")
            previous = time
            column = 1
            prompt_tokens = _tokens(values[1])
            column = 2
            output_tokens = _tokens(values[2])
        except ValueError as problem:
            where = f"{file}, line {number}, column {found.columns[column]!r}"
            raise TraceError(f"{where}: {_quoted(values[column])} {problem}") from None
        yield _Request(time, prompt_tokens, output_tokens)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("is not a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError("is not a number") from None
    if not isfinite(number):
        raise ValueError("is not a finite number")
    if number < 0:
        raise ValueError("is negative")
    return number


def _tokens(value: Any) -> int | None:
    if value is None:
        return None
    number = _number(value)
    if not number.is_integer():
        raise ValueError("is not a whole number")
    return int(number) or None


def _date(value: Any) -> float:
    """Microseconds since 1970; a date without a zone is in UTC. Further digits are dropped."""
    try:
        date = datetime.fromisoformat(value.strip())
    except ValueError:
        raise ValueError("is not a date and time such as 2023-11-16 18:15:46.6805900") from None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return (date - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


_CSV = {
    "BurstGPT": _Format(("Timestamp", "Request tokens", "Response tokens"), _number),
    "Azure LLM inference": _Format(("TIMESTAMP", "ContextTokens", "GeneratedTokens"), _date, 1e6),
}
_JSON = {
    "Mooncake": _Format(("timestamp", "input_length", "output_length"), _number, 1e3),
    "run": _Format(("scheduled_s", "prompt_tokens", "output_tokens"), _number, in_order=False),
}


def _detect(file: Path, line: int, names: Iterable[str], known: dict[str, _Format]) -> _Format:
    """The format that shares most of its columns with `names`, if all of them are there."""
    given = list(names)
    name = max(known, key=lambda name: len(set(known[name].columns) & set(given)))
    missing = [column for column in known[name].columns if column not in given]
    if len(missing) == len(known[name].columns):
        choices = "; ".join(f"{name}: {', '.join(known[name].columns)}" for name in known)
        raise TraceError(f"{file}, line {line}: no known format. Columns that are known: {choices}")
    if missing:
        raise TraceError(
            f"{file}, line {line}: column {missing[0]!r} of the {name} format is missing; "
            f"there are {', '.join(given)}"
        )
    return known[name]


def _open_csv(file: Path) -> tuple[_Format, Iterator[_Line]]:
    rows = _csv_rows(file)
    number, header = next(rows, (1, []))
    names = [name.strip() for name in header]
    found = _detect(file, number, names, _CSV)
    return found, _csv_lines(file, found, names, rows)


def _csv_rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank. A byte that is no UTF-8 shows when its column is read."""
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        reader = csv.reader(text, strict=True)
        try:
            yield from ((reader.line_num, row) for row in reader if row)
        except csv.Error as problem:
            raise TraceError(f"{file}, line {reader.line_num}: {problem}") from None


def _csv_lines(
    file: Path, found: _Format, names: list[str], rows: Iterable[tuple[int, list[str]]]
) -> Iterator[_Line]:
    places = [names.index(column) for column in found.columns]
    for number, row in rows:
        if len(row) != len(names):
            column = repr(names[len(row)]) if len(row) < len(names) else f"{len(names) + 1}"
            raise TraceError(
                f"{file}, line {number}, column {column}: the line has {len(row)} fields, "
                f"the header {len(names)}"
            )
        yield _Line(number, tuple(row[place] for place in places))


def _open_json(file: Path, first: bytes) -> tuple[_Format, Iterator[_Line]]:
    names = _decoded(file, 1, first, msgspec.json.Decoder(dict[str, Any]))
    found = _detect(file, 1, names, _JSON)
    return found, _json_lines(file, found)


def _json_lines(file: Path, found: _Format) -> Iterator[_Line]:
    # A struct skips what is not asked for: the token times of a run are most of its bytes.
    shape = msgspec.defstruct("Line", [(column, Any) for column in found.columns])
    decoder = msgspec.json.Decoder(shape)
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not found.in_order and not line.endswith(b"\n"):
                return  # A run that was cut off: its last line is not whole.
            if line.strip():
                values = msgspec.structs.astuple(_decoded(file, number, line, decoder))
                yield _Line(number, values)


def _decoded(file: Path, number: int, line: bytes, decoder: msgspec.json.Decoder[Any]) -> Any:
    try:
        return decoder.decode(line)
    except msgspec.ValidationError as problem:
        column = re.search(r"field `(\w+)`", str(problem))
        where = f", column {column[1]!r}" if column else ""
        raise TraceError(f"{file}, line {number}{where}: {problem}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise TraceError(f"{file}, line {number}: {problem}") from None


def _quoted(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
