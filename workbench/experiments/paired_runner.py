"""Two endpoints under the same load, turn and turn about: the measurement behind a claim.

A repeat sends the same prompts to both, one after the other; who goes first changes with each
repeat, so that a machine that drifts favours nobody. Each measurement is a run of its own, under
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
from workbench.experiments.paired import OURS, THEIRS, Measurement, PairedComparison
from workbench.loadgen.start import start_load
from workbench.runs.run import Run
from workbench.telemetry.sampler import Telemetry
from workbench.workload.arrivals import ClosedLoop, TraceReplay
from workbench.workload.prompts import FromTrace, RandomPrompts
from workbench.workload.spec import LoadSpec
from workbench.workload.traces import read_trace

if TYPE_CHECKING:
    from workbench.endpoints.remote import Remote
    from workbench.loadgen.progress import Progress

WARM_UP_SEED = 100_000
"""Added to a load's seed, so that no measured prompt has been seen."""


async def compare_with_baseline(
    ours: Remote,
    strategy: Strategy,
    loads: Mapping[str, LoadSpec],
    *,
    repeats: int,
    run: Run,
    theirs_count: int | None = None,
    progress: Progress | str | None = "lines",
) -> dict[str, PairedComparison]:
    """Deploy transformers beside `ours`, hold a contest under each load, and delete it again.

    Every load and strategy has seeds of its own. A baseline that does not start is a result: its
    contests say why. Raises SettingError for an endpoint that was not deployed from here: nothing
    can be put beside it on the same hardware.
    """
    if not isinstance(ours, Endpoint) or not isinstance(ours.spec, ServiceSpec):
        raise SettingError(
            f"{ours.base_url} was not deployed by this process as one model, so that no baseline "
            "can stand beside it on the same hardware: give the address of a Ray cluster"
        )
    try:
        theirs = await asyncio.to_thread(deploy, BaselineSpec.beside(ours.spec, strategy))
    except (DeployError, ResourcesError) as problem:
        said = " ".join(str(problem).split())[:300]
        return {
            name: PairedComparison(strategy.label, broken=f"the baseline did not start: {said}")
            for name in loads
        }
    own = 100 * list(strategies()).index(strategy.kind)
    found = {}
    try:
        for number, (name, load) in enumerate(loads.items()):
            found[name] = await run_alternating(
                ours,
                theirs,
                load.model_copy(update={"seed": load.seed + own + 1000 * number}),
                opponent=strategy.label,
                repeats=repeats,
                run=run,
                theirs_count=theirs_count,
                name=f"{name}-{strategy.kind}",
                progress=progress,
            )
    finally:
        await asyncio.to_thread(theirs.delete)
    return found


async def run_alternating(
    ours: Remote,
    theirs: Remote,
    load: LoadSpec,
    *,
    opponent: str,
    repeats: int,
    run: Run,
    theirs_count: int | None = None,
    name: str = "",
    progress: Progress | str | None = "lines",
) -> PairedComparison:
    """Measure both under `load`, `repeats` times; `theirs_count` is a smaller count for theirs.

    Repeat i has the load's seed + i, so that no prefix cache knows its prompts. One unrecorded
    load goes ahead to each side. An endpoint that is gone ends the contest, which then says so.
    """
    if repeats < 1:
        raise SettingError(f"repeats is {repeats}: give at least 1, and 3 for a verdict")
    if theirs_count is not None and theirs_count < 1:
        raise SettingError(f"theirs_count is {theirs_count}: give at least 1")
    contest = PairedComparison(opponent)
    counts = {OURS: load.count, THEIRS: theirs_count or load.count}
    targets = {OURS: ours, THEIRS: theirs}
    label = name or opponent
    try:
        for side, target in targets.items():
            await _warm_up(target, load, counts[side] or 1)
        for repeat in range(repeats):
            for side in (OURS, THEIRS) if repeat % 2 == 0 else (THEIRS, OURS):
                spec = load.model_copy(update={"seed": load.seed + repeat, "count": counts[side]})
                folder = _folder(run, label, repeat, side, opponent, spec)
                contest.measured.append(
                    await _measure(targets[side], spec, folder, side, repeat, progress)
                )
    except EndpointGoneError as problem:
        contest.broken = f"an endpoint was gone after {len(contest.measured)} measurements"
        contest.broken += f" ({problem})"
    contest.stats = engine_stats(theirs)
    return contest


async def run_single(
    ours: Remote, load: LoadSpec, *, run: Run, progress: Progress | str | None = "lines"
) -> Measurement:
    """One measurement of ours without an opponent, for where no opponent came up."""
    await _warm_up(ours, load, load.count or 1)
    folder = _folder(run, "alone", 0, OURS, "none", load)
    return await _measure(ours, load, folder, OURS, 0, progress)


def _folder(run: Run, label: str, repeat: int, side: str, opponent: str, spec: LoadSpec) -> Run:
    kept = {
        "notebook": run.experiment.get("notebook"),
        "opponent": opponent,
        "side": side,
        "repeat": repeat,
        "seed": spec.seed,
        "load": spec.model_dump(mode="json"),
    }
    tidy = "".join(c if c.isalnum() else "-" for c in label).strip("-")
    return Run.create(run.path / "repeats", kept, run_id=f"{tidy}-{repeat}-{side}")


async def _warm_up(target: Remote, load: LoadSpec, count: int) -> None:
    """As many requests at once as will be sent, with short answers: nobody counts the first steps.

    The first batch of its size pays for memory and kernels that later ones find ready.
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
    """What a baseline's engine counted (`/load`); empty for an endpoint that is no baseline."""
    import httpx

    headers = {"authorization": f"Bearer {target.api_key.get_secret_value()}"}
    url = f"{target.base_url.removesuffix('/v1')}/load"
    try:
        answer = httpx.get(url, headers=headers, timeout=30)
        found = answer.json() if answer.status_code == 200 else {}
    except (httpx.HTTPError, ValueError):
        return {}
    return found if isinstance(found, dict) and "batches" in found else {}


def load_from_trace(load: LoadSpec, path: str, *, within_s: float = 2.0) -> LoadSpec:
    """The lengths of a trace's first requests, as many as `load` has, all sent within `within_s`.

    The trace's own pace would leave the engines waiting for requests: here it is their speed that
    is measured.

    Raises TraceError for a broken trace, SettingError for one that lacks the lengths.
    """
    offsets = [one.offset_s for one in read_trace(path, limit=load.count)]
    speed = max(1.0, offsets[-1] / within_s)
    return load.model_copy(
        update={
            "arrivals": TraceReplay(path=path, limit=load.count, speed=speed),
            "prompts": RandomPrompts(input=FromTrace(), output=FromTrace()),
        }
    )
