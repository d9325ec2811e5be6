"""Measure two endpoints alternately under the same load, for a claim.

A repeat sends the same prompts to both, one after the other. The order changes with each repeat,
so that a drift of the machine favours neither side. Each measurement is a separate run, in
`repeats` in the run's folder.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from serving.errors import DeployError, EndpointGoneError, ResourcesError
from serving.spec.baseline import BaselineSpec, Strategy, strategies
from serving.spec.service import ServiceSpec
from workbench.endpoints.deployed import Endpoint, deploy
from workbench.errors import SettingError
from workbench.experiments.measure import WARM_UP_SEED
from workbench.experiments.paired import BASELINE, CANDIDATE, Measurement, PairedComparison
from workbench.loadgen.start import start_load
from workbench.runs.run import Run
from workbench.telemetry.sampler import Telemetry
from workbench.workload.arrivals import ClosedLoop, TraceReplay
from workbench.workload.prompts import FromTrace, RandomPrompts
from workbench.workload.spec import LoadSpec
from workbench.workload.traces import replay_trace

if TYPE_CHECKING:
    from workbench.endpoints.remote import Remote
    from workbench.loadgen.progress import Progress


async def compare_with_baseline(
    endpoint: Remote,
    strategy: Strategy,
    loads: Mapping[str, LoadSpec],
    *,
    repeats: int,
    run: Run,
    baseline_count: int | None = None,
    progress: Progress | str | None = "lines",
) -> dict[str, PairedComparison]:
    """Deploy a transformers baseline next to `endpoint`, compare them, and delete the baseline.

    Every load and strategy has its own seeds. A baseline that does not start is a result: its
    comparisons give the reason.

    Args:
        endpoint: The candidate, deployed by this process as one model.
        strategy: How the baseline batches requests.
        loads: The loads, by name.
        repeats: Repeats of each load.
        run: The run that contains the measurements.
        baseline_count: Number of requests to the baseline, if less than that of the load.
        progress: How progress is shown.

    Returns:
        A comparison per load, by its name.

    Raises:
        SettingError: If `endpoint` was not deployed from here, so that no baseline can run on the
            same hardware.
    """
    if not isinstance(endpoint, Endpoint) or not isinstance(endpoint.spec, ServiceSpec):
        raise SettingError(
            f"{endpoint.base_url} was not deployed by this process as one model, so that no "
            "baseline can run on the same hardware: give the address of a Ray cluster"
        )
    try:
        baseline = await asyncio.to_thread(
            deploy, BaselineSpec.from_service(endpoint.spec, strategy)
        )
    except (DeployError, ResourcesError) as problem:
        reason = f"the baseline did not start: {' '.join(str(problem).split())[:300]}"
        return {name: PairedComparison(strategy.label, broken=reason) for name in loads}
    strategy_seed = 100 * list(strategies()).index(strategy.kind)
    comparisons = {}
    try:
        for number, (name, load) in enumerate(loads.items()):
            seed = load.seed + strategy_seed + 1000 * number
            comparisons[name] = await run_alternating(
                endpoint,
                baseline,
                load.model_copy(update={"seed": seed}),
                opponent=strategy.label,
                repeats=repeats,
                run=run,
                baseline_count=baseline_count,
                name=f"{name}-{strategy.kind}",
                progress=progress,
            )
    finally:
        await asyncio.to_thread(baseline.delete)
    return comparisons


async def run_alternating(
    candidate: Remote,
    baseline: Remote,
    load: LoadSpec,
    *,
    opponent: str,
    repeats: int,
    run: Run,
    baseline_count: int | None = None,
    name: str = "",
    progress: Progress | str | None = "lines",
) -> PairedComparison:
    """Measure both endpoints under `load`, `repeats` times.

    Repeat i has the load's seed + i, so that no prefix cache knows its prompts. Each side first
    gets one load that is not recorded. If an endpoint is gone, the comparison ends and gives the
    reason.

    Args:
        candidate: The endpoint that a claim is about.
        baseline: Its opponent.
        load: The load of one measurement.
        opponent: The baseline's name.
        repeats: Number of pairs.
        run: The run that contains the measurements.
        baseline_count: Number of requests to the baseline, if less than that of the load.
        name: Prefix of the measurements' run ids, `opponent` by default.
        progress: How progress is shown.

    Raises:
        SettingError: If a number is less than 1.
    """
    if repeats < 1:
        raise SettingError(f"repeats must be at least 1, and 3 for a verdict, got {repeats}")
    if baseline_count is not None and baseline_count < 1:
        raise SettingError(f"baseline_count must be at least 1, got {baseline_count}")
    comparison = PairedComparison(opponent)
    counts = {CANDIDATE: load.count, BASELINE: baseline_count or load.count}
    targets = {CANDIDATE: candidate, BASELINE: baseline}
    label = name or opponent
    try:
        for side, target in targets.items():
            await _warm_up(target, load, counts[side] or 1)
        for repeat in range(repeats):
            for side in (CANDIDATE, BASELINE) if repeat % 2 == 0 else (BASELINE, CANDIDATE):
                spec = load.model_copy(update={"seed": load.seed + repeat, "count": counts[side]})
                folder = _folder(run, label, repeat, side, opponent, spec)
                comparison.measured.append(
                    await _measure(targets[side], spec, folder, side, repeat, progress)
                )
    except EndpointGoneError as problem:
        comparison.broken = (
            f"an endpoint was gone after {len(comparison.measured)} measurements ({problem})"
        )
    comparison.stats = engine_stats(baseline)
    return comparison


async def run_single(
    endpoint: Remote, load: LoadSpec, *, run: Run, progress: Progress | str | None = "lines"
) -> Measurement:
    """Measure the candidate once, for when no baseline started."""
    await _warm_up(endpoint, load, load.count or 1)
    folder = _folder(run, "alone", 0, CANDIDATE, "none", load)
    return await _measure(endpoint, load, folder, CANDIDATE, 0, progress)


def _folder(run: Run, label: str, repeat: int, side: str, opponent: str, spec: LoadSpec) -> Run:
    experiment = {
        "notebook": run.experiment.get("notebook"),
        "opponent": opponent,
        "side": side,
        "repeat": repeat,
        "seed": spec.seed,
        "load": spec.model_dump(mode="json"),
    }
    prefix = "".join(c if c.isalnum() else "-" for c in label).strip("-")
    run_id = f"{prefix}-{repeat}-{side}"
    return Run.create(run.path / "repeats", experiment, run_id=run_id, numbered=True)


async def _warm_up(target: Remote, load: LoadSpec, count: int) -> None:
    """Send as many requests at once as will be measured, with short answers.

    The first batch of its size allocates memory and compiles kernels that later ones use.
    """
    spec = LoadSpec(
        arrivals=ClosedLoop(max_concurrency=count),
        prompts=RandomPrompts(input=32, output=16),
        count=count,
        timeout_s=load.timeout_s,
        seed=load.seed + WARM_UP_SEED,
    )
    await start_load(target, spec, progress=None)


async def _measure(
    target: Remote,
    load: LoadSpec,
    folder: Run,
    side: str,
    repeat: int,
    progress: Progress | str | None,
) -> Measurement:
    running = start_load(target, load, run=folder, progress=progress)
    with Telemetry(target, running.clock, folder.append_telemetry, interval_s=0.5):
        result = await running
    summary = result.summary()
    folder.finish(summary)
    failures = tuple(r.error or r.status for r in result.records if r.status != "ok")
    return Measurement(side, repeat, summary, folder, failures, result.ended_early)


def engine_stats(target: Remote) -> dict[str, Any]:
    """Return what a baseline's engine counted (`/load`), empty if there is no such route."""
    import httpx

    headers = {"authorization": f"Bearer {target.api_key.get_secret_value()}"}
    url = f"{target.base_url.removesuffix('/v1')}/load"
    try:
        answer = httpx.get(url, headers=headers, timeout=30)
        stats = answer.json() if answer.status_code == 200 else {}
    except (httpx.HTTPError, ValueError):
        return {}
    return stats if isinstance(stats, dict) and "batches" in stats else {}


def load_from_trace(
    load: LoadSpec, path: str, *, within_s: float = 2.0, **options: Any
) -> LoadSpec:
    """Return `load` with the lengths of a trace's first requests, all sent within `within_s`.

    At the trace's own pace the engines would wait for requests. Here their speed is measured.

    Args:
        load: The load; its `count` limits the requests.
        path: The trace file, or the folder of a run.
        within_s: Seconds within which all requests are sent.
        options: Further fields of `TraceReplay`, such as `time_unit` and `columns`.

    Raises:
        TraceError: If the trace is invalid.
        SettingError: If it has no lengths.
    """
    trace = TraceReplay(path=path, limit=load.count, **options)
    offsets = [request.offset_s for request in replay_trace(trace).requests]
    speed = max(1.0, offsets[-1] / within_s)
    return load.model_copy(
        update={
            "arrivals": trace.model_copy(update={"speed": speed}),
            "prompts": RandomPrompts(input=FromTrace(), output=FromTrace()),
        }
    )
