"""The share of requests within the SLO and the send lag, in the last minute and so far."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from workbench.metrics.columns import Columns

if TYPE_CHECKING:
    from workbench.metrics.slo import SLO
    from workbench.records import RequestRecord

WINDOW_S = 60.0


class Tally:
    """Counts requests as they end, in batches.

    Attributes:
        slo: The SLO by which they are judged.
        ok: Requests that completed.
        failed: Requests that failed, were shed or timed out.
        good: Those of the judged requests that met the SLO.
        judged: Requests that were judged.
    """

    def __init__(self, slo: SLO | None) -> None:
        self.slo = slo
        self.ok = self.failed = self.good = self.judged = 0
        self._ended: list[RequestRecord] = []
        self._batches: deque[tuple[float, int, int, list[float]]] = deque()

    def ended(self, record: RequestRecord) -> None:
        """Count a request at the next `advance`."""
        self._ended.append(record)

    def advance(self, now_s: float) -> None:
        """Judge the requests that ended since the last call, and drop what is too old."""
        records, self._ended = self._ended, []
        if records:
            self._judge(now_s, records)
        while self._batches and self._batches[0][0] < now_s - WINDOW_S:
            self._batches.popleft()

    def _judge(self, now_s: float, records: list[RequestRecord]) -> None:
        good, judged = (0, 0) if self.slo is None else self.slo.count(Columns.read(records))
        lags = [r.sent_s - r.scheduled_s for r in records if _was_due(r)]  # type: ignore[operator]
        self.ok += sum(record.status == "ok" for record in records)
        self.failed += sum(record.status not in ("ok", "cancelled") for record in records)
        self.good += good
        self.judged += judged
        self._batches.append((now_s, good, judged, lags))

    @property
    def recent_share(self) -> float | None:
        """The share within the SLO in the last minute; None if no request was judged."""
        judged = sum(batch[2] for batch in self._batches)
        return sum(batch[1] for batch in self._batches) / judged if judged else None

    @property
    def share(self) -> float | None:
        """The share within the SLO so far; None if no request was judged."""
        return self.good / self.judged if self.judged else None

    @property
    def send_lag_p99_ms(self) -> float | None:
        """The 99th percentile of the send time minus the scheduled time in the last minute."""
        lags = [lag for batch in self._batches for lag in batch[3]]
        return float(np.percentile(lags, 99)) * 1e3 if lags else None


def _was_due(record: RequestRecord) -> bool:
    return record.sent_s is not None and record.scheduled_s is not None
