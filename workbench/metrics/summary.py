"""Summarize the requests of a run. Pure: nothing here reads a clock, a file or the network.

The metrics are those of `workbench.metrics.registry`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, create_model

from serving.spec.base import Frozen
from workbench.errors import UnknownMetricError
from workbench.metrics.columns import Columns
from workbench.metrics.health import ClientHealth, HealthBounds
from workbench.metrics.metric import STATISTICS, Latency, Totals
from workbench.metrics.registry import LATENCIES, SCALARS, get_latency, nearest
from workbench.metrics.slo import SLO
from workbench.metrics.statistics import statistics

if TYPE_CHECKING:
    import pandas as pd

    from workbench.metrics.health import LoopWatch
    from workbench.records import RequestRecord

__all__ = [
    "SLO",
    "STATISTICS",
    "ClientHealth",
    "HealthBounds",
    "Summary",
    "summarize",
]


_FIGURES: dict[str, Any] = {
    metric.name: (
        metric.kind,
        Field(... if metric.kind is int else None, description=metric.description),
    )
    for metric in SCALARS
} | {figure: (float | None, None) for metric in LATENCIES for figure in metric.figures()}
_Figures: Any = create_model("_Figures", __base__=Frozen, **_FIGURES)


class Summary(_Figures):
    """The figures of a run, with vLLM's names. `model_dump` is `summary.json`."""

    slo: SLO | None = Field(None, description="The SLO of goodput and attainment.")
    warmup_s: float = Field(0, description="Seconds excluded from the start.")
    drift: float | None = Field(
        None, description="Ratio of the median E2EL: last third of the run over first third."
    )
    steady: bool | None = Field(
        None, description="Whether the run had no drift; None with too few requests."
    )
    client_health: ClientHealth = Field(description="Whether the client kept up.")
    workload: dict[str, Any] | None = Field(
        None, description="What was left out or changed of the trace or the prompt file."
    )
    cost: dict[str, Any] | None = Field(
        None, description="The cost, set by `workbench.cost.cost.with_cost`."
    )
    by_model: dict[str, Summary] | None = Field(
        None, description="Summaries by model, if there were several."
    )
    by_tenant: dict[str, Summary] | None = Field(
        None, description="Summaries by tenant, if there were several."
    )

    if TYPE_CHECKING:
        # The figures are created above, where a type checker does not see them.
        def __getattr__(self, name: str) -> Any: ...

    def figure(self, name: str) -> float | None:
        """Return the figure of that name, None if it is absent.

        Raises:
            UnknownMetricError: If there is no such figure.
        """
        value = getattr(self, name, self)
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            return value
        hint = nearest(name, type(self).model_fields)
        raise UnknownMetricError(f"{name!r} is not a figure of a summary. {hint}")

    @property
    def slo_met(self) -> bool | None:
        """Whether attainment reached the SLO's target, None if no request was judged."""
        if self.slo is None or self.slo_attainment is None:
            return None
        return bool(self.slo_attainment >= self.slo.target)

    def table(self, *, from_schedule: bool = False) -> pd.DataFrame:
        """Return the latencies in ms, one row each, with mean, p50, p90, p95 and p99.

        Args:
            from_schedule: Whether to add those that count from the scheduled send.
        """
        import pandas as pd

        columns = ("mean", "p50", "p90", "p95", "p99")
        shown = [metric for metric in LATENCIES if from_schedule or not metric.from_schedule]
        shown = [metric for metric in shown if not self._left_out(metric)]
        rows = [[self.figure(figure) for figure in metric.figures(*columns)] for metric in shown]
        index = [metric.label for metric in shown]
        table = pd.DataFrame(rows, index=index, columns=list(columns), dtype=float)
        limited = self.client_health.client_limited
        return table.rename_axis(columns="ms (client limited)" if limited else "ms")

    def _left_out(self, metric: Latency) -> bool:
        return metric.optional and self.figure(f"mean_{metric.key}") is None

    def headline(self) -> str:
        """Return the run in one line."""
        limited = "CLIENT LIMITED: " if self.client_health.client_limited else ""
        cancelled = f", {self.cancelled} cancelled" if self.cancelled else ""
        parts = [
            f"{self.completed} completed, {self.failed} failed, {self.shed} shed{cancelled}",
            _format("in {:.1f} s", self.duration),
            _format("{:.2f} requests/s", self.request_throughput),
            _format("{:.0f} output tokens/s", self.output_throughput),
            _format("TTFT p50 {:.0f} ms", self.p50_ttft_ms),
            _format("p99 {:.0f} ms", self.p99_ttft_ms),
            _format("{:.1%} within the SLO", self.slo_attainment),
        ]
        return limited + ", ".join(part for part in parts if part)


def _format(template: str, value: float | None) -> str:
    return "" if value is None else template.format(value)


@dataclass(frozen=True)
class _Run:
    """The parts that the summaries of a run, its models and its tenants have in common."""

    duration: float | None
    slo: SLO | None
    health: ClientHealth


def summarize(
    records: Iterable[RequestRecord] | Columns,
    *,
    duration_s: float | None = None,
    slo: SLO | None = None,
    warmup_s: float = 0.0,
    health: ClientHealth | None = None,
    watch: LoopWatch | None = None,
) -> Summary:
    """Summarize the requests that were due at least `warmup_s` after the first one.

    Args:
        records: Read once and not kept; or the columns of all records.
        duration_s: Duration of the whole run, warm-up included. By default from the time at which
            the first request was due (scheduled, else sent) to the last end.
        slo: The bounds for goodput and attainment.
        warmup_s: Seconds to exclude from the start.
        health: The client's health. By default judged from the send lag and from `watch`.
        watch: The watch over the event loop that sent the requests.
    """
    whole = records if isinstance(records, Columns) else Columns.read(records)
    start = np.fmin.reduce(whole.due_s, initial=np.nan) + warmup_s
    counted = whole.take(whole.due_s >= start) if warmup_s else whole
    end = np.fmax.reduce(counted.end_s, initial=np.nan)
    duration = float(end - start) if duration_s is None else duration_s - warmup_s
    run = _Run(duration if duration > 0 else None, slo, health or _health(counted, watch))
    groups = {f"by_{name}": _by(counted, name, run) for name in ("model", "tenant")}
    return _summary(counted, run).model_copy(update={**groups, "warmup_s": warmup_s})


def _health(columns: Columns, watch: LoopWatch | None) -> ClientHealth:
    return ClientHealth.judge(
        send_lag_p99_ms=statistics((columns.sent_s - columns.scheduled_s) * 1e3)["p99"],
        loop_lag_p99_ms=None if watch is None else watch.loop_lag_p99_ms,
        cpu_share=None if watch is None else watch.cpu_share,
    )


def _by(columns: Columns, name: str, run: _Run) -> dict[str, Summary] | None:
    codes, names = columns.codes[name], columns.names[name]
    if len(names) < 2:
        return None
    return {
        group or "(none)": _summary(columns.take(codes == code), run)
        for code, group in enumerate(names)
    }


def _summary(columns: Columns, run: _Run) -> Summary:
    judgement = (None, 0, None) if run.slo is None else run.slo.totals(columns)
    totals = Totals(columns, run.duration, *judgement)
    drift, steady = _drift(columns)
    return Summary(
        **{metric.name: metric.formula(totals) for metric in SCALARS},
        **_latencies(columns),
        slo=run.slo,
        drift=drift,
        steady=steady,
        client_health=run.health,
    )


def _latencies(columns: Columns) -> dict[str, float | None]:
    """Return every statistic of every latency, in ms. Reorders what pooled formulas return."""
    ok = columns.ok
    figures: dict[str, float | None] = {}
    # Pooled ones last, and ITL as the last of them: it reorders the gaps that the others read.
    for metric in sorted(LATENCIES, key=lambda metric: (metric.pooled, metric.name == "itl")):
        values = metric.formula(columns)
        measured = statistics(values if metric.pooled else values[ok], reorder=metric.pooled)
        figures |= {
            f"{statistic}_{metric.key}": None if seconds is None else seconds * 1e3
            for statistic, seconds in measured.items()
        }
    return figures


def _drift(columns: Columns) -> tuple[float | None, bool | None]:
    """Return the drift of E2EL over a run, and whether the run is steady.

    The drift is the median E2EL of the last third over that of the first, by due time. A run is
    not steady if it drifts by more than a fifth, and by more than chance (a rank-sum test,
    |z| > 2.58).
    """
    due_s, e2el = columns.due_s[columns.ok], get_latency("e2el").formula(columns)[columns.ok]
    third = len(due_s) // 3
    if third < 10:
        return None, None
    ordered = e2el[np.argsort(due_s, kind="stable")]
    first, last = ordered[:third], ordered[-third:]
    ratio = float(np.median(last) / np.median(first)) if np.median(first) else None
    ranks = np.argsort(np.argsort(np.concatenate([first, last]), kind="stable"))
    surplus = float(ranks[third:].sum()) - third * (2 * third - 1) / 2
    z = surplus / (third * third * (2 * third + 1) / 12) ** 0.5
    return ratio, ratio is None or 1 / 1.2 <= ratio <= 1.2 or abs(z) <= 2.58
