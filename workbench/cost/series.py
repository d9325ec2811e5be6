"""The cost while it grows, a row a sample: the same rows live and from a run's folder. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from workbench.cost.cost import CostMeter
from workbench.cost.prices import Prices, replica_prices
from workbench.records import DeploymentSample, Sample

if TYPE_CHECKING:
    import pandas as pd

    from serving.spec.service import EndpointSpec
    from workbench.metrics.slo import SLO
    from workbench.records import RequestRecord

COLUMNS = ("time_s", "per_hour", "so_far", "per_million")


class CostSeries:
    """Dollars per hour now, dollars so far, and dollars per million tokens within the SLO so far.

    Samples and ended requests come in the order of their times. `keep` bounds how many rows are
    kept; the sums are of the whole run. Without prices there are no rows.
    """

    def __init__(
        self,
        spec: EndpointSpec | None,
        prices: Prices | None,
        *,
        slo: SLO | None = None,
        keep: int | None = None,
    ) -> None:
        """Raises SettingError for a price that is missing."""
        priced = spec is not None and prices is not None
        self._meter = CostMeter(replica_prices(spec, prices), prices) if priced else None  # type: ignore[arg-type]
        self._slo = slo
        self._at_s: float | None = None
        self._rows: deque[tuple[float, float, float, float | None]] = deque(maxlen=keep)

    def ended(self, record: RequestRecord) -> None:
        """A request has ended, in whatever way."""
        if self._meter is not None and record.status == "ok" and is_good(record, self._slo):
            self._meter.good(record.prompt_tokens, record.output_tokens)

    def see(self, sample: Sample) -> None:
        """A sample was taken. A moment makes a row when a later one comes: then it is whole."""
        if self._meter is None:
            return
        if isinstance(sample, DeploymentSample) and sample.time_s != self._at_s:
            if self._at_s is not None:
                now = self._meter.now()
                row = (self._at_s, now.dollars_per_hour, now.dollars, now.per_million_tokens)
                self._rows.append(row)
            self._at_s = sample.time_s
        self._meter.see(sample)

    def frame(self) -> pd.DataFrame:
        """The rows kept, with `COLUMNS`."""
        import pandas as pd

        return pd.DataFrame(list(self._rows), columns=list(COLUMNS), dtype=float)


def cost_rows(
    series: CostSeries, samples: Iterable[Sample], records: Iterable[RequestRecord]
) -> pd.DataFrame:
    """The rows of a whole run."""
    ended = iter(sorted(records, key=lambda record: record.end_s or 0.0))
    record = next(ended, None)
    for sample in samples:
        while record is not None and (record.end_s or 0.0) <= sample.time_s:
            series.ended(record)
            record = next(ended, None)
        series.see(sample)
    return series.frame()


def is_good(record: RequestRecord, slo: SLO | None) -> bool:
    """Whether a completed request met every bound of `slo`, as `Columns.met` judges many."""
    if slo is None:
        return True
    end, sent = record.end_s or 0.0, record.sent_s or 0.0
    first = end if record.first_token_s is None else record.first_token_s
    due = sent if record.scheduled_s is None else record.scheduled_s
    tokens = record.output_tokens or 0
    took = {
        "ttft_ms": first - sent,
        "e2el_ms": end - sent,
        "tpot_ms": (end - first) / (tokens - 1) if tokens > 1 else 0.0,
        "ttft_from_schedule_ms": first - due,
        "e2el_from_schedule_ms": end - due,
    }
    return all(took[name] * 1e3 <= bound for name, bound in slo.bounds().items())
