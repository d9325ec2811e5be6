"""Probes: the same load at one rate after another, each recorded as a separate run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from workbench.experiments.search import slo_unreachable
from workbench.loadgen.start import start_load
from workbench.metrics.bootstrap import repeat_intervals
from workbench.metrics.registry import compared_figures
from workbench.runs.run import Run

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from workbench.endpoints.remote import Remote
    from workbench.loadgen.handle import LoadRun
    from workbench.loadgen.progress import Progress
    from workbench.metrics.slo import SLO
    from workbench.metrics.summary import Summary
    from workbench.workload.spec import LoadSpec

CHECK_S = 0.5
"""Seconds between two checks of whether the SLO can still be met. A check reads all records."""
CURVE = ("output_throughput", "request_goodput", *compared_figures("p95"))


def make_probe(
    target: Remote,
    load: LoadSpec | Callable[[float, int], LoadSpec],
    slo: SLO,
    *,
    run: Run,
    progress: Progress | str | None = "lines",
    stop_when_lost: bool = True,
) -> Callable[[float], Awaitable[Summary]]:
    """Return a probe, which sends a load at a given rate and returns the summary.

    Every probe is a numbered run in `run.path/probes` and has its own seed.

    Args:
        target: The endpoint.
        load: The load, or a function that returns the load for a rate and the number of probes
            before it.
        slo: The SLO for the summary.
        run: The run that contains the probes.
        progress: How progress is shown.
        stop_when_lost: Whether to stop a probe that can no longer meet the SLO.
    """
    root = run.path / "probes"

    async def probe(rate: float) -> Summary:
        before = len(list(root.iterdir())) if root.exists() else 0
        spec = load(rate, before) if callable(load) else load.at(rate, seed=load.seed + before)
        experiment = {"rate": rate, "load": spec.model_dump(mode="json"), "seed": spec.seed}
        folder = Run.create(root, experiment, run_id=f"{before + 1:03d}-at-{rate:g}")
        running = start_load(target, spec, run=folder, progress=progress)
        check = asyncio.create_task(_stop_when_lost(running, slo, spec.warmup_s))
        if not stop_when_lost:
            check.cancel()
        try:
            summary = (await running).summary(slo)
        finally:
            check.cancel()
        folder.finish(summary)
        return summary

    return probe


async def _stop_when_lost(running: LoadRun, slo: SLO, warmup_s: float) -> None:
    """Stop a load once `slo` is missed even if all remaining requests are good."""
    while True:
        await asyncio.sleep(CHECK_S)
        first_s = min((record.due_s for record in running.records), default=0.0)
        judged = [record for record in running.records if record.due_s >= first_s + warmup_s]
        if slo_unreachable(judged, slo, requests_left=running.remaining):
            running.stop("the SLO can no longer be met")
            return


async def measure_curve(
    probe: Callable[[float], Awaitable[Summary]],
    rates: Sequence[float],
    *,
    rng: np.random.Generator,
    repeats: int = 1,
) -> pd.DataFrame:
    """Probe every rate and return throughput and latencies, one row per rate.

    Each repeat goes through all rates, so that a drift of the machine affects every rate. With 3
    repeats or more, each figure is the mean over the repeats, with its interval in columns that end
    in `_low` and `_high`. With fewer, it is that of the repeat with the median throughput.
    """
    import pandas as pd

    summaries: dict[float, list[Summary]] = {rate: [] for rate in rates}
    for _ in range(repeats):
        for rate in rates:
            summaries[rate].append(await probe(rate))
    return pd.DataFrame([_row(rate, repeated, rng) for rate, repeated in summaries.items()])


def _row(rate: float, summaries: Sequence[Summary], rng: np.random.Generator) -> dict[str, object]:
    by_throughput = sorted(summaries, key=lambda summary: summary.output_throughput or 0)
    middle = by_throughput[len(summaries) // 2]
    row: dict[str, object] = {"rate": rate, "repeats": len(summaries)}
    row |= {name: middle.figure(name) for name in CURVE}
    row["slo_attainment"] = middle.slo_attainment
    row["client_limited"] = any(summary.client_health.client_limited for summary in summaries)
    if len(summaries) >= 3:
        intervals = repeat_intervals(summaries, rng=rng)
        for name in CURVE:
            if name in intervals:
                row[name] = intervals[name].estimate
                row[f"{name}_low"], row[f"{name}_high"] = intervals[name].low, intervals[name].high
    return row
