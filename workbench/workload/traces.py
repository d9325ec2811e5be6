"""Recorded requests: published trace files, and the runs of this workbench.

`workbench.workload.trace_formats` has the formats. A file is read as a stream, but whole, because
its rows may be out of order; with `limit` alone, only that many rows of it are read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from workbench.errors import TraceError
from workbench.workload.arrivals import TraceReplay
from workbench.workload.trace_formats import SAMPLE, UNITS_PER_SECOND, Unit, find_block_size
from workbench.workload.trace_rows import TraceRows, open_rows

if TYPE_CHECKING:
    import numpy as np

_ALWAYS = ("images", "session_id", "delay")
_CONTENT = ("hash_ids", "text_input", "messages", "tools")
_MISSING = (None, "")
_COARSE_S = 0.1
"""Arrivals count as batches if their times are at least this far apart, ..."""
_COARSE_SHARE = 0.1
"""... and at least this share of the requests has the time of another."""


class TraceRequest(msgspec.Struct, frozen=True, gc=False):
    """One recorded request: seconds since the start of the cut, and its lengths in tokens.

    A length is None where the trace has none: null, or the 0 that BurstGPT writes for a request
    that failed. The request counts as an arrival.

    Attributes:
        offset_s: Seconds since the start of the cut.
        prompt_tokens: Tokens of the prompt.
        output_tokens: Tokens of the answer.
        hash_ids: The ids of the blocks of the prompt; two equal ids are the same tokens.
        content: The prompt itself, as a text or the messages of a chat.
        tools: The tools of a chat.
        delay_s: Seconds between the answer before and this turn of a session.
        later: The turns of the session after this one.
    """

    offset_s: float
    prompt_tokens: int | None
    output_tokens: int | None
    hash_ids: tuple[int, ...] | None = None
    content: str | tuple[dict[str, Any], ...] | None = None
    tools: tuple[dict[str, Any], ...] | None = None
    delay_s: float = 0.0
    later: tuple[TraceRequest, ...] = ()


@dataclass(frozen=True, slots=True)
class Trace:
    """The requests of a trace in the order of their times, and what is notable about it.

    Attributes:
        requests: The requests of the cut.
        format: The name of the format.
        unit: The unit of its times.
        block_size: Tokens per hash id; None if unknown.
        out_of_order: Rows that were before an earlier row, and were sorted.
        images: Requests with images. Their prompts have as many tokens, but no image.
        batch_s: Seconds between batches, if the times are so coarse that requests share them.
        prefixes: Whether it has hash ids.
    """

    requests: list[TraceRequest]
    format: str
    unit: Unit
    block_size: int | None = None
    out_of_order: int = 0
    images: int = 0
    batch_s: float | None = None
    prefixes: bool = False


def read_trace(
    path: str | Path,
    *,
    start_s: float | None = None,
    end_s: float | None = None,
    speed: float = 1.0,
    limit: int | None = None,
    **options: Any,
) -> list[TraceRequest]:
    """Return the requests of a trace file, or of a run's folder, in the order of their times.

    The time of a trace starts with its first request.

    Args:
        path: The file or the folder.
        start_s: Start of the cut (inclusive). The offsets count from here.
        end_s: End of the cut (exclusive).
        speed: The offsets are divided by it.
        limit: Maximum number of requests. Without a cut, further rows are not read.
        options: Further fields of `TraceReplay`: `time_unit`, `columns` and `block_size`.

    Raises:
        SpecError: A bound or the speed is out of range.
        TraceError: The format or its unit of time is unknown, a column is missing, a time is
            negative, a row is invalid, or the cut has no request. The message names file, line and
            column.
    """
    cut = {"start_s": start_s, "end_s": end_s, "speed": speed, "limit": limit}
    return replay_trace(TraceReplay(path=str(path), **cut, **options)).requests


def replay_trace(spec: TraceReplay, *, content: bool = False) -> Trace:
    """Return the trace that `spec` names, as `read_trace` does.

    Args:
        spec: The file and the cut.
        content: Whether to read also the hash ids and the prompts.
    """
    file = Path(spec.path)
    file = file / "requests.jsonl" if file.is_dir() else file
    unit = None if spec.time_unit == "auto" else spec.time_unit
    rows = open_rows(file, spec.columns, unit, [*_ALWAYS, *(_CONTENT if content else ())])
    table = _Table(rows, _times(rows, spec))
    whole = spec.start_s is spec.end_s is None and rows.format.sorted_by_time
    table.read(islice(rows.rows, spec.limit if whole else None))
    trace = table.trace(spec)
    if not trace.requests:
        raise TraceError(
            f"{file}: no request from start_s = {spec.start_s} to end_s = {spec.end_s}; "
            "widen the cut or give another file"
        )
    return trace


def _times(rows: TraceRows, spec: TraceReplay) -> Any:
    """Return the function that reads a time."""
    if rows.format.unit == "date" and spec.time_unit != "auto":
        raise TraceError(
            f"{rows.file}: the times of a {rows.format.name} trace are dates, got "
            f"TraceReplay.time_unit = {spec.time_unit!r}; leave it out"
        )
    return read_date if rows.unit == "date" else read_number


@dataclass
class _Table:
    """The rows that were read: a list per column. Times count from the zero of the file."""

    source: TraceRows
    read_time: Any
    times: list[float] = field(default_factory=list)
    prompts: list[int | None] = field(default_factory=list)
    outputs: list[int | None] = field(default_factory=list)
    extras: list[tuple[Any, ...]] = field(default_factory=list)
    later: dict[int, list[TraceRequest]] = field(default_factory=lambda: defaultdict(list))
    sessions: dict[Any, int] = field(default_factory=dict)

    def read(self, rows: Iterable[tuple[int, tuple[Any, ...]]]) -> None:
        """Check rows and append them."""
        read_time, extra = self.read_time, self.source.extra
        turns = "delay" in extra
        keeps = len(extra) > 0
        for number, values in rows:
            column = 0
            try:
                if turns and self._is_later_turn(values):
                    self._append_turn(values)
                    continue
                time = read_time(values[0])
                column = 1
                prompt = read_tokens(values[1])
                column = 2
                output = read_tokens(values[2])
            except ValueError as problem:
                where = self.source.where(number, column)
                raise TraceError(f"{where}: {_shortened(values[column])} {problem}") from None
            self.times.append(time)
            self.prompts.append(prompt)
            self.outputs.append(output)
            if keeps:
                self.extras.append(values[3:])

    def _is_later_turn(self, values: tuple[Any, ...]) -> bool:
        extra = dict(zip(self.source.extra, values[3:], strict=True))
        session = extra.get("session_id")
        known = session not in _MISSING and session in self.sessions
        if values[0] in _MISSING and not known:
            raise ValueError("is missing in the first request of a session")
        if not known and session not in _MISSING:
            self.sessions[session] = len(self.times)
        return known and extra["delay"] not in _MISSING

    def _append_turn(self, values: tuple[Any, ...]) -> None:
        extra = dict(zip(self.source.extra, values[3:], strict=True))
        delay_s = read_number(extra["delay"]) / UNITS_PER_SECOND[self.source.unit]
        prompt, output = read_tokens(values[1]), read_tokens(values[2])
        turn = TraceRequest(0.0, prompt, output, **_content(extra), delay_s=delay_s)
        self.later[self.sessions[extra["session_id"]]].append(turn)

    def trace(self, spec: TraceReplay) -> Trace:
        """Return the requests of the cut in the order of their times."""
        import numpy as np

        times = np.array(self.times)
        moved = int((times < np.maximum.accumulate(times)).sum()) if times.size else 0
        order = np.argsort(times, kind="stable")
        # The difference first: a date in microseconds is exact, in seconds it is not.
        ordered = times[order]
        offsets = (ordered - ordered[:1]) / UNITS_PER_SECOND[self.source.unit]
        inside = (offsets >= (spec.start_s or 0.0)) & (offsets < (spec.end_s or inf))
        rows = order[inside][: spec.limit]
        offsets = offsets[inside][: spec.limit] - (spec.start_s or 0.0)
        return Trace(
            list(self._requests(rows.tolist(), (offsets / spec.speed).tolist())),
            self.source.format.name,
            self.source.unit,
            spec.block_size or self._block_size(rows.tolist()),
            moved if self.source.format.sorted_by_time else 0,
            sum(1 for _ in self._images(rows.tolist())),
            _batch_s(offsets),
            self.source.prefixes,
        )

    def _requests(self, rows: Sequence[int], offsets: Sequence[float]) -> Iterator[TraceRequest]:
        prompts, outputs, extras, names = self.prompts, self.outputs, self.extras, self.source.extra
        placed = zip(offsets, rows, strict=True)
        if names == ("hash_ids",):  # The most frequent one, and the one that may be large.
            yield from (
                TraceRequest(at, prompts[row], outputs[row], *extras[row]) for at, row in placed
            )
        elif not set(names) & set(_CONTENT):
            later = self.later
            for at, row in placed:
                turns = tuple(later[row]) if row in later else ()
                yield TraceRequest(at, prompts[row], outputs[row], later=turns)
        else:
            for at, row in placed:
                content = _content(dict(zip(names, extras[row], strict=True)))
                turns = tuple(self.later.get(row, ()))
                yield TraceRequest(at, prompts[row], outputs[row], **content, later=turns)

    def _block_size(self, rows: Sequence[int]) -> int | None:
        if "hash_ids" not in self.source.extra:
            return None
        column = self.source.extra.index("hash_ids")
        return find_block_size(
            (self.prompts[row], self.extras[row][column]) for row in rows[:SAMPLE]
        )

    def _images(self, rows: Sequence[int]) -> Iterator[int]:
        if "images" in self.source.extra:
            column = self.source.extra.index("images")
            yield from (row for row in rows if self.extras[row][column] not in (None, "", "0", 0))


def _content(extra: dict[str, Any]) -> dict[str, Any]:
    return {
        "hash_ids": extra.get("hash_ids"),
        "content": extra.get("messages") or extra.get("text_input") or None,
        "tools": extra.get("tools"),
    }


def _batch_s(offsets: np.ndarray[Any, Any]) -> float | None:
    """Return the median time between batches, in seconds, if the arrivals come in batches."""
    import numpy as np

    gaps = np.diff(offsets)
    steps = gaps[gaps > 0]
    shared = np.mean(gaps == 0) if gaps.size else 0.0
    coarse = steps.size and steps.min() >= _COARSE_S and shared >= _COARSE_SHARE
    return float(np.median(steps)) if coarse else None


def read_number(value: Any) -> float:
    """Return a time or a count.

    Raises:
        ValueError: It is not a finite number of at least 0.
    """
    if value.__class__ is bool or not isinstance(value, int | float | str):
        raise ValueError("is not a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError("is not a number") from None
    if 0 <= number < inf:
        return number
    raise ValueError("is negative" if -inf < number < 0 else "is not a finite number")


def read_tokens(value: Any) -> int | None:
    """Return a number of tokens, or None for 0 and for a missing number.

    Raises:
        ValueError: It is not a whole number of at least 0.
    """
    if value.__class__ is int and value > 0:
        return value
    if value.__class__ is str and value.isdecimal():
        return int(value) or None
    if value is None:
        return None
    number = read_number(value)
    if not number.is_integer():
        raise ValueError("is not a whole number")
    return int(number) or None


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def read_date(value: Any) -> float:
    """Return microseconds since 1970. A date without a zone is in UTC; finer digits are cut.

    Raises:
        ValueError: It is not a date.
    """
    try:
        date = datetime.fromisoformat(value.strip())
    except (AttributeError, ValueError):
        raise ValueError("is not a date and time such as 2023-11-16 18:15:46.6805900") from None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return (date - _EPOCH) // _MICROSECOND


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
