"""Loads as probes: the same load at one rate after the other, each kept as a run of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from workbench.experiments.search import saturated
from workbench.loadgen.start import start_load
from workbench.metrics.bootstrap import repeat_intervals
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

LOOK_S = 0.5
"""Between two looks at whether a probe is lost: each looks at all its records."""
CURVE = ("output_throughput", "request_goodput", "p95_ttft_ms", "p95_tpot_ms", "p95_e2el_ms")


def make_probe(
    target: Remote,
    load: LoadSpec | Callable[[float, int], LoadSpec],
    slo: SLO,
    *,
    run: Run,
    progress: Progress | str | None = "lines",
    stop_when_lost: bool = True,
) -> Callable[[float], Awaitable[Summary]]:
    """A probe: sends `load` at the rate it is given and returns the summary.

    `load` may be a function that makes the load of a rate and the number of probes before it.
    Every probe is a run under `run.path/probes`, numbered, and has a seed of its own. One that can
    no longer reach the SLO is stopped, unless `stop_when_lost` is False.
    """
    root = run.path / "probes"

    async def probe(rate: float) -> Summary:
        before = len(list(root.iterdir())) if root.exists() else 0
        spec = load(rate, before) if callable(load) else load.at(rate, seed=load.seed + before)
        kept = {"rate": rate, "load": spec.model_dump(mode="json"), "seed": spec.seed}
        folder = Run.create(root, kept, run_id=f"{before + 1:03d}-at-{rate:g}")
        running = start_load(target, spec, run=folder, progress=progress)
        looking = asyncio.create_task(_stop_when_lost(running, slo, spec.warmup_s))
        if not stop_when_lost:
            looking.cancel()
        try:
            summary = (await running).summary(slo)
        finally:
            looking.cancel()
        folder.finish(summary)
        return summary

    return probe


async def _stop_when_lost(running: LoadRun, slo: SLO, warmup_s: float) -> None:
    """Stop a load once `slo` is missed, however well the rest of it goes."""
    while True:
        await asyncio.sleep(LOOK_S)
        first = min((record.due_s for record in running.records), default=0.0)
        judged = [one for one in running.records if one.due_s >= first + warmup_s]
        if saturated(judged, slo, requests_left=running.remaining):
            running.stop("the SLO can no longer be met")
            return


async def measure_curve(
    probe: Callable[[float], Awaitable[Summary]],
    rates: Sequence[float],
    *,
    rng: np.random.Generator,
    repeats: int = 1,
) -> pd.DataFrame:
    """A row a rate: throughput and latencies, and with 3 repeats or more their intervals.

    The repeats go round all rates in turn, so that a drift of the machine meets every rate.
    """
    import pandas as pd

    found: dict[float, list[Summary]] = {rate: [] for rate in rates}
    for _ in range(repeats):
        for rate in rates:
            found[rate].append(await probe(rate))
    return pd.DataFrame([_row(rate, said, rng) for rate, said in found.items()])


def _row(rate: float, said: Sequence[Summary], rng: np.random.Generator) -> dict[str, object]:
    middle = sorted(said, key=lambda summary: summary.output_throughput or 0)[len(said) // 2]
    row: dict[str, object] = {"rate": rate, "repeats": len(said)}
    row |= {name: middle.figure(name) for name in CURVE}
    row["slo_attainment"] = middle.slo_attainment
    row["client_limited"] = any(summary.client_health.client_limited for summary in said)
    if len(said) >= 3:
        intervals = repeat_intervals(said, rng=rng)
        for name in CURVE:
            if name in intervals:
                row[name] = intervals[name].estimate
                row[f"{name}_low"], row[f"{name}_high"] = intervals[name].low, intervals[name].high
    return row
