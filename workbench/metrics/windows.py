"""Requests as rolling windows, a row a second: the same rows while they come and afterwards. Pure.

A row at `time_s` tells of the `roll_s` seconds before it (fewer at the start). A request counts in
the second in which it ended, its latencies too, so that no row changes once its second is over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from workbench.records import RequestRecord

ROLL_S = 5
COLUMNS = (
    "time_s",
    "sent",  # a second
    "achieved",  # completed, a second
    "failed",  # errors and timeouts, a second
    "shed",  # a second
    "in_flight",  # at `time_s`
    "ttft_p50_ms",
    "ttft_p99_ms",
    "itl_p50_ms",
    "itl_p99_ms",
)
_COUNTED = {"ok": "achieved", "error": "failed", "timeout": "failed", "shed": "shed"}


@dataclass
class _Second:
    sent: int = 0
    ended: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTED.values(), 0))
    ttft_ms: list[float] = field(default_factory=list)
    itl_ms: list[np.ndarray[Any, Any]] = field(default_factory=list)


class RequestWindows:
    """Rows that grow as requests are sent and end. `keep` bounds how many are kept."""

    def __init__(self, *, roll_s: int = ROLL_S, keep: int | None = None) -> None:
        self._open: dict[int, _Second] = {}
        self._recent: deque[_Second] = deque(maxlen=roll_s)
        self._rows: deque[tuple[float, ...]] = deque(maxlen=keep)
        self._next = 0
        self._in_flight = 0

    def sent(self, at_s: float) -> None:
        """A request was sent."""
        self._second(at_s).sent += 1

    def ended(self, record: RequestRecord) -> None:
        """A request that was sent has ended, in whatever way."""
        if record.end_s is None:
            return
        second = self._second(record.end_s)
        second.ended += 1
        if record.status in _COUNTED:
            second.counts[_COUNTED[record.status]] += 1
        if record.status != "ok" or record.sent_s is None:
            return
        if record.first_token_s is not None:
            second.ttft_ms.append((record.first_token_s - record.sent_s) * 1e3)
        second.itl_ms.append(np.diff(np.array(record.token_times_s)) * 1e3)

    def close(self, until_s: float) -> int:
        """Make the rows of the seconds that are over at `until_s`; how many are new."""
        before = self._next
        while self._next + 1 <= until_s:
            second = self._open.pop(self._next, None) or _Second()
            self._recent.append(second)
            self._in_flight += second.sent - second.ended
            self._next += 1
            self._rows.append(self._row())
        return self._next - before

    def frame(self) -> pd.DataFrame:
        """The rows kept, with `COLUMNS`."""
        import pandas as pd

        return pd.DataFrame(list(self._rows), columns=list(COLUMNS), dtype=float)

    def _second(self, at_s: float) -> _Second:
        # What is told late counts in the first second still open, so that no count is lost.
        number = max(int(at_s), self._next)
        return self._open.setdefault(number, _Second())

    def _row(self) -> tuple[float, ...]:
        recent, span = self._recent, len(self._recent)
        rates = [sum(one.counts[name] for one in recent) / span for name in _counted()]
        ttft = [ms for one in recent for ms in one.ttft_ms]
        itl = [gaps for one in recent for gaps in one.itl_ms]
        latencies = _percentiles(ttft), _percentiles(np.concatenate(itl) if itl else [])
        sent = sum(one.sent for one in recent) / span
        return (self._next, sent, *rates, self._in_flight, *latencies[0], *latencies[1])


def request_windows(records: Iterable[RequestRecord], *, until_s: float = 0.0) -> pd.DataFrame:
    """The rows of requests that have all ended, up to the last end, and at least to `until_s`."""
    windows, last = RequestWindows(), 0.0
    for record in records:
        if record.sent_s is not None:
            windows.sent(record.sent_s)
            windows.ended(record)
        last = max(last, record.end_s or 0.0)
    windows.close(np.ceil(max(last, until_s)))
    return windows.frame()


def _counted() -> tuple[str, ...]:
    return tuple(dict.fromkeys(_COUNTED.values()))


def _percentiles(values: Any) -> tuple[float, float]:
    if not len(values):
        return (np.nan, np.nan)
    low, high = np.percentile(values, [50, 99])
    return float(low), float(high)
