"""The rows of a trace in memory, and the requests of a cut of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any

from workbench.errors import TraceError
from workbench.workload.arrivals import TraceReplay
from workbench.workload.trace_formats import SAMPLE, UNITS_PER_SECOND, find_block_size
from workbench.workload.trace_request import Trace, TraceRequest
from workbench.workload.trace_rows import TraceRows
from workbench.workload.trace_values import read_number, read_tokens, shortened

if TYPE_CHECKING:
    import numpy as np

CONTENT = ("hash_ids", "text_input", "messages", "tools")
"""The columns of the prompts themselves."""
_MISSING = (None, "")
_COARSE_S = 0.1
"""Arrivals count as batches if their times are at least this far apart, ..."""
_COARSE_SHARE = 0.1
"""... and at least this share of the requests has the time of another."""


@dataclass
class TraceTable:
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
                raise TraceError(f"{where}: {shortened(values[column])} {problem}") from None
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
        elif not set(names) & set(CONTENT):
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
