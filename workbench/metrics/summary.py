"""Records in, a `Summary` out. Pure: nothing here reads a clock, a file or the network.

Definitions, per request that completed, in milliseconds. All but the last two are those of
`vllm bench serve` (vLLM 0.29, `vllm/benchmarks/serve.py`, `calculate_metrics`):

- TTFT = first_token - sent. E2EL = end - sent.
- TPOT = (E2EL - TTFT) / (output tokens - 1), for requests of two or more output tokens.
- ITL = the gaps between the token events of a request, pooled over the requests.
- TTFT from schedule = first_token - scheduled. E2EL from schedule = end - scheduled. A client that
  sends late cannot hide queueing from these.

Over these: the mean, the median, the standard deviation (of the population), and percentiles with
linear interpolation, as numpy computes them. A figure of no values is None (vLLM prints 0).

Rates are per second of `duration`: request_throughput = completed / duration; output_throughput =
output tokens of completed requests / duration; total_token_throughput adds their prompt tokens;
request_goodput = completed requests within every bound of the SLO / duration (a request of one
output token has no TPOT and is within any bound on it, as in vLLM). slo_attainment = good /
(completed + failed + shed + cancelled ones that were past a bound when they were cut): a failed
request was never good, and a request that we cut early proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, Field, create_model

from serving.spec.base import Frozen
from workbench.errors import UnknownMetricError
from workbench.metrics.columns import (
    STATISTICS,
    STATUSES,
    Columns,
    greatest,
    least,
    statistics,
    total,
)
from workbench.metrics.health import ClientHealth, HealthBounds
from workbench.metrics.slo import SLO

if TYPE_CHECKING:
    import pandas as pd

    from workbench.metrics.columns import Floats
    from workbench.metrics.health import LoopWatch
    from workbench.records import RequestRecord

__all__ = [
    "LATENCIES",
    "SLO",
    "STATISTICS",
    "ClientHealth",
    "HealthBounds",
    "Summary",
    "summarize",
]

LATENCIES = ("ttft", "tpot", "itl", "e2el", "ttft_from_schedule", "e2el_from_schedule")


class _Counts(Frozen):
    completed: int = Field(description="Requests that ended well.")
    failed: int = Field(description="Errors and timeouts.")
    shed: int = Field(description="Refused with HTTP 429 or 503.")
    cancelled: int = Field(description="Cut by the client; in no rate and no latency.")
    duration: float | None = Field(description="Seconds that the rates are taken over.")
    total_input_tokens: int | None = Field(description="Prompt tokens of completed requests.")
    total_output_tokens: int | None = Field(description="Output tokens of completed requests.")
    without_usage: int = Field(description="Completed requests whose tokens nobody counted.")
    request_throughput: float | None = Field(description="Completed requests a second.")
    output_throughput: float | None = Field(description="Output tokens a second.")
    total_token_throughput: float | None = Field(description="Prompt and output tokens a second.")
    request_goodput: float | None = Field(description="Requests within the SLO a second.")
    slo: SLO | None = Field(description="The bounds that goodput is counted against.")
    slo_attainment: float | None = Field(description="Share of requests within the SLO.")


_FIGURES: dict[str, Any] = {
    f"{statistic}_{latency}_ms": (float | None, None)
    for latency in LATENCIES
    for statistic in STATISTICS
}
_Flat: Any = create_model("_Flat", __base__=_Counts, **_FIGURES)


class Summary(_Flat):
    """The figures of a run, under vLLM's names; `model_dump` is `summary.json`."""

    warmup_s: float = Field(0, description="Seconds cut from the start.")
    drift: float | None = Field(None, description="Median E2EL, last third over first third.")
    steady: bool | None = Field(None, description="No drift; None with too few requests to say.")
    client_health: ClientHealth = Field(description="Whether the client kept up.")
    cost: dict[str, Any] | None = Field(None, description="Filled in by workbench.cost.cost.")
    by_model: dict[str, Summary] | None = Field(None, description="If there were several.")
    by_tenant: dict[str, Summary] | None = Field(None, description="If there were several.")

    if TYPE_CHECKING:
        # The latency fields are made above, where a type checker does not see them.
        def __getattr__(self, name: str) -> Any: ...

    def figure(self, name: str) -> float | None:
        """The figure of that name, None where absent. Raises UnknownMetricError."""
        value = getattr(self, name, self)
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            return value
        raise UnknownMetricError(f"there is no figure {name!r}. {_nearest(name, type(self))}")

    @property
    def slo_met(self) -> bool | None:
        """Whether attainment reached the SLO's target."""
        if self.slo is None or self.slo_attainment is None:
            return None
        return bool(self.slo_attainment >= self.slo.target)

    def table(self, *, from_schedule: bool = False) -> pd.DataFrame:
        """Latencies in ms: a row each, with mean, p50, p90, p95 and p99."""
        import pandas as pd

        columns = ("mean", "p50", "p90", "p95", "p99")
        shown = LATENCIES if from_schedule else LATENCIES[:4]
        rows = [[getattr(self, f"{s}_{latency}_ms") for s in columns] for latency in shown]
        names = [name.partition("_") for name in shown]
        index = [f"{head.upper()} {tail.replace('_', ' ')}".strip() for head, _, tail in names]
        table = pd.DataFrame(rows, index=index, columns=list(columns), dtype=float)
        limited = self.client_health.client_limited
        return table.rename_axis(columns="ms (client limited)" if limited else "ms")

    def headline(self) -> str:
        """The run in one line."""
        limited = "CLIENT LIMITED: " if self.client_health.client_limited else ""
        cut = f", {self.cancelled} cancelled" if self.cancelled else ""
        parts = [
            f"{self.completed} completed, {self.failed} failed, {self.shed} shed{cut}",
            _said("in {:.1f} s", self.duration),
            _said("{:.2f} requests/s", self.request_throughput),
            _said("{:.0f} output tokens/s", self.output_throughput),
            _said("TTFT p50 {:.0f} ms", self.p50_ttft_ms),
            _said("p99 {:.0f} ms", self.p99_ttft_ms),
            _said("{:.1%} within the SLO", self.slo_attainment),
        ]
        return limited + ", ".join(part for part in parts if part)


def _nearest(name: str, model: type[BaseModel]) -> str:
    close = get_close_matches(name, list(model.model_fields), n=1, cutoff=0.4)
    return f"Did you mean {close[0]!r}?" if close else "summary.model_dump() has them all."


def _said(form: str, value: float | None) -> str:
    return "" if value is None else form.format(value)


def summarize(
    records: Iterable[RequestRecord],
    *,
    duration_s: float | None = None,
    slo: SLO | None = None,
    warmup_s: float = 0.0,
    health: ClientHealth | None = None,
    watch: LoopWatch | None = None,
) -> Summary:
    """Summarize the requests that were due at least `warmup_s` after the first one.

    `records` is read once and not kept. `duration_s` is that of the whole run, warm-up included;
    without it, from the first request's due time (scheduled, else sent) to the last end. Without
    a verdict in `health`, one is made from the send lag and, if given, the `watch` over the loop.
    """
    whole = Columns.read(records)
    kept = whole.take(whole.due >= least(whole.due) + warmup_s) if warmup_s else whole
    start = least(whole.due) + warmup_s
    duration = greatest(kept.end) - start if duration_s is None else duration_s - warmup_s
    shared: dict[str, Any] = {
        "duration": duration if duration > 0 else None,
        "slo": slo,
        "health": health or _health(kept, watch),
    }
    groups = {f"by_{name}": _by(kept, name, shared) for name in ("model", "tenant")}
    summary = _summary(kept, **shared)
    return summary.model_copy(update={**groups, "warmup_s": warmup_s})


def _health(columns: Columns, watch: LoopWatch | None) -> ClientHealth:
    return ClientHealth.judge(
        send_lag_p99_ms=statistics((columns.sent - columns.scheduled) * 1e3)["p99"],
        loop_lag_p99_ms=None if watch is None else watch.loop_lag_p99_ms,
        cpu_share=None if watch is None else watch.cpu_share,
    )


def _by(columns: Columns, name: str, shared: Mapping[str, Any]) -> dict[str, Summary] | None:
    codes, names = columns.codes[name], columns.names[name]
    if len(names) < 2:
        return None
    found = {names[code]: columns.take(codes == code) for code in range(len(names))}
    return {group or "(none)": _summary(part, **shared) for group, part in found.items()}


def _summary(
    columns: Columns, *, duration: float | None, slo: SLO | None, health: ClientHealth
) -> Summary:
    counts = dict(zip(STATUSES, np.bincount(columns.status, minlength=5).tolist(), strict=True))
    ok = columns.status == 0
    latencies = columns.latencies(ok)
    good, judged = columns.good(slo)
    tokens_in, tokens_out = total(columns.prompt[ok]), total(columns.output[ok])
    both = None if tokens_in is None or tokens_out is None else tokens_in + tokens_out
    drift, steady = _drift(columns.due[ok], latencies["e2el"])
    rate = {"request_throughput": counts["ok"], "output_throughput": tokens_out}
    rate |= {"total_token_throughput": both, "request_goodput": good}
    return Summary(
        completed=counts["ok"],
        failed=counts["error"] + counts["timeout"],
        shed=counts["shed"],
        cancelled=counts["cancelled"],
        duration=duration,
        total_input_tokens=tokens_in,
        total_output_tokens=tokens_out,
        without_usage=int(np.isnan(columns.output[ok]).sum()),
        slo=slo,
        slo_attainment=good / judged if good is not None and judged else None,
        drift=drift,
        steady=steady,
        client_health=health,
        **{n: None if v is None or duration is None else v / duration for n, v in rate.items()},
        **_figures(latencies, columns.gaps),
    )


def _figures(latencies: Mapping[str, Floats], gaps: Floats) -> dict[str, float | None]:
    """Every statistic of every latency in ms; `gaps` is reordered, as they may be very many."""
    found: dict[str, float | None] = {}
    for name, values in latencies.items():
        found |= {f"{s}_{name}_ms": v for s, v in statistics(values * 1e3).items()}
    itl = statistics(gaps, own=True)
    return found | {f"{s}_itl_ms": v and v * 1e3 for s, v in itl.items()}


def _drift(due: Floats, e2el: Floats) -> tuple[float | None, bool | None]:
    """Median E2EL of the last third over that of the first, by due time, and whether it is steady.

    Not steady: off by more than a fifth, and by more than chance (a rank-sum test, |z| > 2.58).
    """
    third = len(due) // 3
    if third < 10:
        return None, None
    ordered = e2el[np.argsort(due, kind="stable")]
    first, last = ordered[:third], ordered[-third:]
    ratio = float(np.median(last) / np.median(first)) if np.median(first) else None
    ranks = np.argsort(np.argsort(np.concatenate([first, last]), kind="stable"))
    surplus = float(ranks[third:].sum()) - third * (2 * third - 1) / 2
    z = surplus / (third * third * (2 * third + 1) / 12) ** 0.5
    return ratio, ratio is None or 1 / 1.2 <= ratio <= 1.2 or abs(z) <= 2.58
