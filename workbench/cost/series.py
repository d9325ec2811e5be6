"""The cost over time, one row per sample, the same live and from a saved run. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from workbench.cost.cost import CostMeter, tokens_within_slo
from workbench.cost.prices import Prices
from workbench.records import DeploymentSample, Sample

if TYPE_CHECKING:
    import pandas as pd

    from serving.spec.service import EndpointSpec
    from workbench.metrics.slo import SLO
    from workbench.records import RequestRecord

COST_COLUMNS = ("time_s", "per_hour", "so_far", "per_million")


class CostSeries:
    """Dollars per hour now, dollars so far, and dollars per million tokens within the SLO so far.

    Samples and ended requests must come in the order of their times. Without a specification or
    prices there are no rows.

    Args:
        spec: The deployed specification.
        prices: Its prices.
        slo: The SLO that tokens must meet. Without it, every completed request counts.
        keep: The number of rows to keep. The sums always cover the whole run.

    Raises:
        SettingError: If a price is missing.
    """

    def __init__(
        self,
        spec: EndpointSpec | None,
        prices: Prices | None,
        *,
        slo: SLO | None = None,
        keep: int | None = None,
    ) -> None:
        self._meter: CostMeter | None = None
        if spec is not None and prices is not None:
            self._meter = CostMeter(prices.per_replica_hour(spec), prices)
        self._slo = slo
        self._at_s: float | None = None
        self._ended: list[RequestRecord] = []
        self._rows: deque[tuple[float, float, float, float | None]] = deque(maxlen=keep)

    def ended(self, record: RequestRecord) -> None:
        """Count a request that ended, with any status."""
        if self._meter is not None:
            self._ended.append(record)

    def observe(self, sample: Sample) -> None:
        """Count up to this sample. The row of a moment is made when a later one is sampled."""
        if self._meter is None:
            return
        if isinstance(sample, DeploymentSample) and sample.time_s != self._at_s:
            if self._at_s is not None:
                self._add_row(self._meter, self._at_s)
            self._at_s = sample.time_s
        self._meter.observe(sample)

    def frame(self) -> pd.DataFrame:
        """Return the rows that were kept, with `COST_COLUMNS`."""
        import pandas as pd

        return pd.DataFrame(list(self._rows), columns=list(COST_COLUMNS), dtype=float)

    def _add_row(self, meter: CostMeter, at_s: float) -> None:
        # Requests are judged together, once per row: one by one would be slow at a high rate.
        meter.add_tokens(tokens_within_slo(self._ended, self._slo))
        self._ended.clear()
        now = meter.now()
        self._rows.append((at_s, now.dollars_per_hour, now.dollars, now.per_million_tokens))


def cost_rows(
    series: CostSeries, samples: Iterable[Sample], records: Iterable[RequestRecord]
) -> pd.DataFrame:
    """Return the rows of a whole run, with `COST_COLUMNS`."""
    ended = iter(sorted(records, key=lambda record: record.end_s or 0.0))
    record = next(ended, None)
    for sample in samples:
        while record is not None and (record.end_s or 0.0) <= sample.time_s:
            series.ended(record)
            record = next(ended, None)
        series.observe(sample)
    return series.frame()
