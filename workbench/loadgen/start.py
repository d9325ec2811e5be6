"""Send a load from Ray actors outside the kernel, and keep every record as it ends.

    load = LoadSpec(arrivals=Poisson(rate=8), prompts=RandomPrompts(input=64, output=64), count=200)
    result = await start_load(endpoint, load, run=run)

`start_load` checks and plans first, so that mistakes are reported before the first request. It
returns a `LoadRun` that sends in the background. Awaiting it gives the `LoadResult`, or raises what
failed. `stop()` ends it early and keeps everything that ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from workbench.clock import start_clock
from workbench.endpoints.models import context_length
from workbench.endpoints.remote import Remote
from workbench.errors import SettingError
from workbench.loadgen.accepted import adapt_calls
from workbench.loadgen.handle import LiveLoad, LoadRun
from workbench.loadgen.progress import Progress, make_live_progress, make_progress
from workbench.loadgen.runner import LoadRunner
from workbench.loadgen.sources import LiveSource, PlannedSource
from workbench.workload.arrivals import OpenArrivals, kinds_of
from workbench.workload.prompt_generator import generate_prompts
from workbench.workload.rate_curve import check_rate
from workbench.workload.spec import WORKER_RATE, LoadSpec, make_plan, plan_digest

if TYPE_CHECKING:
    from workbench.clock import Clock
    from workbench.records import RequestRecord
    from workbench.runs.run import Run

_TOKEN_IDS = (0,)
"""A content like those of a live load, whose prompts are token ids."""


def start_load(
    target: Remote,
    load: LoadSpec,
    *,
    run: Run | None = None,
    clock: Clock | None = None,
    progress: Progress | str | None = "lines",
    on_record: Callable[[RequestRecord], None] | None = None,
) -> LoadRun:
    """Plan `load` and start to send it to `target`, in the running event loop.

    An endpoint that this process did not deploy gets a few small requests first, once, to find out
    which parameters it accepts (`workbench.loadgen.accepted`).

    Args:
        target: The endpoint.
        load: What to send, and when.
        run: Records are appended to it as requests end.
        clock: The run's clock, in seconds; by default one that starts now.
        progress: `"bar"` for a person in a notebook, `"lines"` for a pipeline, or None.
        on_record: Called with each record.

    Raises:
        SettingError: The model or the endpoint cannot take the load.
        TraceError: A trace cannot be read.
        EndpointGoneError: Nothing answers.
        RunError: `run` already has a load. All four are raised before anything is sent.
    """
    from workbench.workload.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(target.tokenizer)
    plan = make_plan(load, tokenizer, max_model_len=context_length(target))
    running = LoadRun(sum(len(arrival.turns) for arrival in plan), clock or start_clock())
    if run is not None:
        run.take_load()
        run.write_plan(len(plan), plan_digest(plan))
    shown = make_progress(progress, load, plan)
    source = PlannedSource(load, plan)
    contents = (prompt.content for arrival in plan for prompt in arrival.turns)
    calls = adapt_calls(target, load, contents)
    runner = LoadRunner(target, load, source, running, run, shown, on_record, calls)
    running._task = asyncio.get_running_loop().create_task(runner.run())
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
    """Start to send `load` to `target`, in the running event loop, as a load that can be changed.

    Args:
        target: The endpoint.
        load: What to send, and when. It has random prompts and no count.
        max_rate: The highest rate that can be set, in requests per second; by default 100 for
            each load worker that the plan needs.
        run: Records and changes are appended to it.
        clock: The run's clock, in seconds; by default one that starts now.
        progress: `"lines"` or None.
        on_record: Called with each record.
        on_sent: Called with the times of requests that were sent.

    Raises:
        SettingError: The load cannot be changed while it runs, or the model or the endpoint cannot
            take it.
        EndpointGoneError: Nothing answers.
        RunError: `run` already has a load. All three are raised before anything is sent.
    """
    import numpy as np

    from workbench.workload.tokenizer import load_tokenizer

    _check_live(load)
    tokenizer, max_model_len = load_tokenizer(target.tokenizer), context_length(target)
    rng = np.random.default_rng(0)
    generate_prompts(load.prompts, tokenizer, rng, max_model_len=max_model_len)
    workers = max(load.needed_workers, -(-int(check_rate(max_rate or 0)) // int(WORKER_RATE)))
    running = LiveLoad(
        planned=0,
        clock=clock or start_clock(),
        load=load,
        max_rate=max_rate or workers * WORKER_RATE,
        max_model_len=max_model_len,
        on_sent=on_sent,
    )
    shown = make_live_progress(progress, running)
    if run is not None:
        run.take_load(live=True)
    source = LiveSource(running, tokenizer.regular_token_ids, workers)
    calls = adapt_calls(target, load, [_TOKEN_IDS])
    runner = LoadRunner(target, load, source, running, run, shown, on_record, calls)
    running._task = asyncio.get_running_loop().create_task(runner.run())
    return running


def _check_live(load: LoadSpec) -> None:
    if not isinstance(load.arrivals, OpenArrivals):
        raise SettingError(
            f"arrivals of kind {load.arrivals.kind!r} have no rate to change: give "
            f"{kinds_of(OpenArrivals)}"
        )
    if load.prompts.kind != "random":
        raise SettingError(
            f"a live load sends random prompts, got prompts of kind {load.prompts.kind!r}: "
            "give RandomPrompts"
        )
    if load.count is not None:
        raise SettingError(
            f"a live load ends with its plan or its duration_s, got count = {load.count}: "
            "leave it out"
        )
