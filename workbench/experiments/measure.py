"""Send one load and keep everything about it in a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.loadgen.start import start_load
from workbench.telemetry.sampler import Telemetry
from workbench.workload.arrivals import ClosedLoop, TraceReplay
from workbench.workload.prompts import RandomPrompts
from workbench.workload.spec import LoadSpec

if TYPE_CHECKING:
    from workbench.endpoints.remote import Remote
    from workbench.loadgen.handle import LoadResult
    from workbench.loadgen.progress import Progress
    from workbench.metrics.slo import SLO
    from workbench.runs.run import Run

WARM_UP_SEED = 100_000
"""Added to a load's seed for its warm-up, so that no measured prompt is in a cache already."""


async def measure(
    endpoint: Remote,
    load: LoadSpec,
    *,
    run: Run,
    slo: SLO | None = None,
    progress: Progress | str | None = "lines",
    interval_s: float = 1.0,
) -> LoadResult:
    """Send `load` and write its records, the telemetry and the summary into `run`.

    Args:
        endpoint: Where the load is sent.
        load: What is sent and when.
        run: The run that keeps it.
        slo: The bounds for goodput and attainment in the summary.
        progress: `"bar"` for a person in a notebook, `"lines"` for a pipeline, None for neither.
        interval_s: Seconds between two samples of the cluster.

    Raises:
        SettingError: The model or the endpoint cannot take the load; nothing was sent.
        EndpointGoneError: Nothing answers at the endpoint; nothing was sent.
    """
    running = start_load(endpoint, load, run=run, progress=progress)
    with Telemetry(endpoint, running.clock, run.append_telemetry, interval_s):
        result = await running
    run.finish(result.summary(slo))
    return result


async def warm_up(
    endpoint: Remote, load: LoadSpec, *, requests: int = 12, concurrency: int = 4
) -> None:
    """Send a few requests like those of `load` without recording them.

    The first requests are slower: caches are empty and connections not yet open.
    """
    replayed = isinstance(load.arrivals, TraceReplay)
    warm = LoadSpec(
        arrivals=ClosedLoop(max_concurrency=concurrency),
        prompts=RandomPrompts(input=32, output=16) if replayed else load.prompts,
        count=requests,
        timeout_s=load.timeout_s,
        seed=load.seed + WARM_UP_SEED,
    )
    await start_load(endpoint, warm, progress=None)
