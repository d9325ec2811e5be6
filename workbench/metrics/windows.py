"""Requests in rolling windows, one row per second, the same live and from a saved run. Pure.

A row at `time_s` covers the `roll_s` seconds before it (fewer at the start). A request counts in
the second in which it ended, and so do its latencies, so that no row changes once its second is
over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.metrics.columns import Columns
from workbench.metrics.registry import get_latency

if TYPE_CHECKING:
    import pandas as pd

    from workbench.metrics.columns import Floats
    from workbench.records import RequestRecord

ROLL_S = 5
WINDOWED = ("ttft", "itl")
WINDOW_COLUMNS = (
    "time_s",
    "sent",  # per second
    "achieved",  # completed, per second
    "failed",  # errors and timeouts, per second
    "shed",  # per second
    "in_flight",  # at `time_s`
    *(f"{name}_{rank}_ms" for name in WINDOWED for rank in ("p50", "p99")),
)
_OUTCOMES = {"ok": "achieved", "error": "failed", "timeout": "failed", "shed": "shed"}
_COUNTED = tuple(dict.fromkeys(_OUTCOMES.values()))


@dataclass
class _Open:
    """A second that is not over yet."""

    sent: int = 0
    ended: list[RequestRecord] = field(default_factory=list)


@dataclass(frozen=True)
class _Closed:
    """The data of a second that is over. Latencies are in ms."""

    sent: int
    ended: int
    counts: dict[str, int]
    latencies_ms: dict[str, Floats]

    @classmethod
    def from_open(cls, second: _Open) -> _Closed:
        counts = dict.fromkeys(_COUNTED, 0)
        for record in second.ended:
            if record.status in _OUTCOMES:
                counts[_OUTCOMES[record.status]] += 1
        completed = [record for record in second.ended if record.status == "ok"]
        columns = Columns.read(completed)
        latencies = {name: get_latency(name).formula(columns) * 1e3 for name in WINDOWED}
        known = {name: values[~np.isnan(values)] for name, values in latencies.items()}
        return cls(second.sent, len(second.ended), counts, known)


class RequestWindows:
    """Rows that grow as requests are sent and end. `keep` limits how many rows are kept."""

    def __init__(self, *, roll_s: int = ROLL_S, keep: int | None = None) -> None:
        self._open: dict[int, _Open] = {}
        self._recent: deque[_Closed] = deque(maxlen=roll_s)
        self._rows: deque[tuple[float, ...]] = deque(maxlen=keep)
        self._next = 0
        self._in_flight = 0

    def sent(self, at_s: float) -> None:
        """Count a request that was sent at `at_s`."""
        self._second(at_s).sent += 1

    def ended(self, record: RequestRecord) -> None:
        """Count a sent request that ended, with any status."""
        if record.end_s is not None:
            self._second(record.end_s).ended.append(record)

    def close(self, until_s: float) -> int:
        """Make the rows of the seconds that are over at `until_s`. Returns how many are new."""
        before = self._next
        while self._next + 1 <= until_s:
            second = _Closed.from_open(self._open.pop(self._next, _Open()))
            self._recent.append(second)
            self._in_flight += second.sent - second.ended
            self._next += 1
            self._rows.append(self._row())
        return self._next - before

    def frame(self) -> pd.DataFrame:
        """Return the rows that were kept, with `WINDOW_COLUMNS`."""
        import pandas as pd

        return pd.DataFrame(list(self._rows), columns=list(WINDOW_COLUMNS), dtype=float)

    def _second(self, at_s: float) -> _Open:
        # A late report counts in the first second still open, so that no count is lost.
        return self._open.setdefault(max(int(at_s), self._next), _Open())

    def _row(self) -> tuple[float, ...]:
        recent, span = self._recent, len(self._recent)
        sent = sum(second.sent for second in recent) / span
        rates = [sum(second.counts[name] for second in recent) / span for name in _COUNTED]
        pooled = [
            np.concatenate([second.latencies_ms[name] for second in recent]) for name in WINDOWED
        ]
        percentiles = [value for values in pooled for value in _p50_p99(values)]
        return (self._next, sent, *rates, self._in_flight, *percentiles)


def request_windows(records: Iterable[RequestRecord], *, until_s: float = 0.0) -> pd.DataFrame:
    """Return the rows of ended requests, up to the last end and at least to `until_s`."""
    windows, last_s = RequestWindows(), 0.0
    for record in records:
        if record.sent_s is not None:
            windows.sent(record.sent_s)
            windows.ended(record)
        last_s = max(last_s, record.end_s or 0.0)
    windows.close(np.ceil(max(last_s, until_s)))
    return windows.frame()


def _p50_p99(values: Any) -> tuple[float, float]:
    if not len(values):
        return (np.nan, np.nan)
    p50, p99 = np.percentile(values, [50, 99])
    return float(p50), float(p99)
