"""Send a load from Ray actors outside the kernel, and keep every record as it ends.

    load = LoadSpec(arrivals=Poisson(rate=8), prompts=RandomPrompts(input=64, output=64), count=200)
    result = await start_load(endpoint, load, run=run)

`start_load` checks and plans, so that what is wrong is said before the first request, and returns
a `LoadRun` that sends in the background; awaiting it gives the `LoadResult`, or raises what went
wrong. `stop()` ends it early and keeps all that ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from workbench.endpoints.remote import Remote, context_length
from workbench.errors import SettingError
from workbench.loadgen.handle import WORKER_RATE, LiveLoad, LoadResult, LoadRun
from workbench.loadgen.progress import Progress, live_progress, make_progress
from workbench.loadgen.runner import LoadRunner
from workbench.workload.live_schedule import checked_rate
from workbench.workload.spec import LoadSpec, digest, plan

if TYPE_CHECKING:
    from workbench.clock import Clock
    from workbench.records import RequestRecord
    from workbench.runs.run import Run

__all__ = ["LoadResult", "LoadRun", "start_load"]


def start_load(
    target: Remote,
    load: LoadSpec,
    *,
    run: Run | None = None,
    clock: Clock | None = None,
    progress: Progress | str | None = "lines",
    on_record: Callable[[RequestRecord], None] | None = None,
) -> LoadRun:
    """Plan `load` and begin to send it to `target`, in the running event loop.

    Records are appended to `run` as requests end, in seconds on `clock` (by default one that
    starts now). `progress`: `"bar"` for a person in a notebook, `"lines"` for a pipeline, None.
    `on_record` sees each record.

    Raises, before anything is sent: SettingError for a load that the model or the endpoint cannot
    take, TraceError for a broken trace, EndpointGoneError if nothing answers.
    """
    from workbench.clock import start_clock
    from workbench.workload.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(target.tokenizer)
    sessions = plan(load, tokenizer, max_model_len=context_length(target))
    planned = sum(len(session.turns) for session in sessions)
    running = LoadRun(planned, clock or start_clock())
    if run is not None:
        run.write_plan(len(sessions), digest(sessions))
    said = make_progress(progress, load, sessions)
    drive = LoadRunner(target, load, sessions, running, run, said, on_record)
    running._task = asyncio.get_running_loop().create_task(drive.run())
    return running


def start_live_load(
    target: Remote,
    load: LoadSpec,
    *,
    max_rate: float | None = None,
    run: Run | None = None,
    clock: Clock | None = None,
    progress: Progress | str | None = "lines",
    on_record: Callable[[RequestRecord], None] | None = None,
    on_sent: Callable[[list[float]], None] | None = None,
) -> LiveLoad:
    """Begin to send `load` to `target`, in the running event loop, and let it be steered.

    `max_rate` is the most that will be set by hand (100 a second for each load worker that the plan
    needs, if absent). `on_sent` sees the times of requests sent, the rest is as in `start_load`.

    Raises, before anything is sent: SettingError for a load that cannot be steered, or that the
    model or the endpoint cannot take; EndpointGoneError if nothing answers.
    """
    import numpy as np

    from workbench.clock import start_clock
    from workbench.loadgen.live_runner import LiveLoadRunner
    from workbench.workload.prompt_generator import prompts
    from workbench.workload.tokenizer import load_tokenizer

    _check_steerable(load)
    tokenizer, length = load_tokenizer(target.tokenizer), context_length(target)
    prompts(load.prompts, tokenizer, np.random.default_rng(0), max_model_len=length)
    needed = max(load.needed_workers, -(-int(checked_rate(max_rate or 0)) // int(WORKER_RATE)))
    running = LiveLoad(
        planned=0,
        clock=clock or start_clock(),
        load=load,
        max_rate=max_rate or needed * WORKER_RATE,
        max_model_len=length,
        on_sent=on_sent,
    )
    said = live_progress(progress, running)
    drive = LiveLoadRunner(target, load, [], running, run, said, on_record)
    drive.ordinary, drive.needed = tokenizer.ordinary, needed
    running._task = asyncio.get_running_loop().create_task(drive.run())
    return running


def _check_steerable(load: LoadSpec) -> None:
    if load.arrivals.kind in ("closed", "trace"):
        raise SettingError(
            f"arrivals.kind is {load.arrivals.kind!r}, which has no rate to change: give constant, "
            "poisson, gamma, ramp, steps or stages"
        )
    if load.prompts.kind != "random":
        raise SettingError(f"prompts.kind is {load.prompts.kind!r}: a live load sends random ones")
    if load.count is not None:
        raise SettingError(f"count is {load.count}: a live load ends by its plan or duration_s")
