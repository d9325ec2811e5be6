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
from workbench.loadgen.handle import LoadResult, LoadRun
from workbench.loadgen.progress import Progress, progress_of
from workbench.loadgen.runner import Drive
from workbench.workload.spec import LoadSpec, digest, plan

if TYPE_CHECKING:
    from workbench.loadgen.client import Clock
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
    from workbench.loadgen.client import start_clock
    from workbench.workload.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(target.tokenizer)
    sessions = plan(load, tokenizer, max_model_len=context_length(target))
    planned = sum(len(session.turns) for session in sessions)
    running = LoadRun(planned, clock or start_clock())
    if run is not None:
        run.write_plan(len(sessions), digest(sessions))
    said = progress_of(progress, load, sessions)
    drive = Drive(target, load, sessions, running, run, said, on_record)
    running._task = asyncio.get_running_loop().create_task(drive.run())
    return running
