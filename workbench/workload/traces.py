"""Recorded arrivals: published trace files, and the runs of this workbench.

| format | recognized by | unit of time |
| --- | --- | --- |
| BurstGPT | CSV: `Timestamp, Request tokens, Response tokens` | seconds |
| Azure LLM inference | CSV: `TIMESTAMP, ContextTokens, GeneratedTokens` | dates |
| Mooncake | JSONL: `timestamp, input_length, output_length` | milliseconds |
| a run's requests.jsonl | JSONL: `scheduled_s, prompt_tokens, output_tokens` | seconds |

Other columns are ignored. A file is read as a stream, and no further than needed. Only the lines of
a run, which are in the order in which requests ended, are all read and sorted.

To add a format, add an entry to `_FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any, Literal, NamedTuple

from workbench.errors import TraceError
from workbench.workload.arrivals import TraceReplay
from workbench.workload.trace_files import (
    TraceLine,
    csv_lines,
    csv_rows,
    json_columns,
    json_lines,
)


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One recorded request: seconds since the start of the cut, and its lengths in tokens.

    A length is None where the trace has none: null, or the 0 that BurstGPT writes for a request
    that failed. The request counts as an arrival.
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
    """Return the requests of a trace file, or of a run's folder, in the order of their times.

    The time of a trace starts with its first request. Lines after the cut are not read and not
    checked.

    Args:
        path: The file or the folder.
        start_s: Start of the cut (inclusive). The offsets count from here.
        end_s: End of the cut (exclusive).
        speed: The offsets are divided by it.
        limit: Maximum number of requests.

    Raises:
        SpecError: A bound or the speed is out of range.
        TraceError: The format is unknown, a column is missing, a time is negative or out of order,
            a line is invalid, or the cut has no request. The message names file, line and column.
    """
    return replay_trace(
        TraceReplay(path=str(path), start_s=start_s, end_s=end_s, speed=speed, limit=limit)
    )


def replay_trace(spec: TraceReplay) -> list[TraceRequest]:
    """Return the requests that `spec` names, as `read_trace` does."""
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
    """A line as recorded. `time` is in the unit of the file, or in seconds since the first."""

    time: float
    prompt_tokens: int | None
    output_tokens: int | None


class _Format(NamedTuple):
    """The columns of time, prompt tokens and output tokens, and how the time is read."""

    file: Literal["csv", "jsonl"]
    columns: tuple[str, str, str]
    time: Callable[[Any], float]
    units_per_second: float = 1
    sorted_by_time: bool = True


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
    trace_format, trace_lines = _open(file, first)
    requests = _parsed(file, trace_format, trace_lines)
    if not trace_format.sorted_by_time:
        requests = iter(sorted(requests, key=lambda request: request.time))
    start: float | None = None
    for request in requests:
        start = request.time if start is None else start
        # The difference first: a date in microseconds is exact, in seconds it is not.
        yield request._replace(time=(request.time - start) / trace_format.units_per_second)


def _parsed(file: Path, trace_format: _Format, lines: Iterable[TraceLine]) -> Iterator[_Request]:
    """Check lines. Their times stay in the unit of the file and count from its zero."""
    previous: float | None = None
    for number, values in lines:
        column = 0
        try:
            time = trace_format.time(values[0])
            if trace_format.sorted_by_time and previous is not None and time < previous:
                raise ValueError("is before the line above; sort the file by time")
            previous = time
            column = 1
            prompt_tokens = _tokens(values[1])
            column = 2
            output_tokens = _tokens(values[2])
        except ValueError as problem:
            where = f"{file}, line {number}, column {trace_format.columns[column]!r}"
            raise TraceError(f"{where}: {_shortened(values[column])} {problem}") from None
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
    """Return microseconds since 1970. A date without a zone is in UTC; finer digits are cut."""
    try:
        date = datetime.fromisoformat(value.strip())
    except ValueError:
        raise ValueError("is not a date and time such as 2023-11-16 18:15:46.6805900") from None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return (date - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


_FORMATS = {
    "BurstGPT": _Format("csv", ("Timestamp", "Request tokens", "Response tokens"), _number),
    "Azure LLM inference": _Format(
        "csv", ("TIMESTAMP", "ContextTokens", "GeneratedTokens"), _date, 1e6
    ),
    "Mooncake": _Format("jsonl", ("timestamp", "input_length", "output_length"), _number, 1e3),
    "run": _Format(
        "jsonl", ("scheduled_s", "prompt_tokens", "output_tokens"), _number, sorted_by_time=False
    ),
}


def _detect(file: Path, line: int, names: Iterable[str], kind: Literal["csv", "jsonl"]) -> _Format:
    """Return the format that shares most of its columns with `names`, if all are there."""
    header = list(names)
    known = {name: entry.columns for name, entry in _FORMATS.items() if entry.file == kind}
    name = max(known, key=lambda name: len(set(known[name]) & set(header)))
    missing = [column for column in known[name] if column not in header]
    if len(missing) == len(known[name]):
        choices = "; ".join(f"{name}: {', '.join(columns)}" for name, columns in known.items())
        raise TraceError(f"{file}, line {line}: unknown format. The known columns are: {choices}")
    if missing:
        raise TraceError(
            f"{file}, line {line}: column {missing[0]!r} of the {name} format is missing; "
            f"there are {', '.join(header)}"
        )
    return _FORMATS[name]


def _open(file: Path, first: bytes) -> tuple[_Format, Iterator[TraceLine]]:
    """Return the format of a file, and its lines. `first` is its first line."""
    if first.startswith(b"{"):
        trace_format = _detect(file, 1, json_columns(file, first), "jsonl")
        may_be_cut_off = not trace_format.sorted_by_time
        return trace_format, json_lines(file, trace_format.columns, may_be_cut_off=may_be_cut_off)
    rows = csv_rows(file)
    number, names = next(rows, (1, []))
    header = [name.strip() for name in names]
    trace_format = _detect(file, number, header, "csv")
    return trace_format, csv_lines(file, trace_format.columns, header, rows)


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
