"""An hour of a busy dashboard in a real kernel, as fast as it goes: its CPU time and its growth.

`hour_in_a_kernel` starts a kernel as JupyterLab does and runs `replay` in it: 8 replicas sampled
each second, 10 requests a second of 64 tokens, and two drawings a second, through the dashboard's
own state and view and the load's own bookkeeping. Every message to the browser is made and sent;
nobody listens, unless a notebook in JupyterLab calls `replay` (browser_memory.py), at a pace that
the browser can follow.
"""

from __future__ import annotations

import gc
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HOUR_S = 3600
UPDATES_A_SECOND, REQUESTS_A_SECOND, TOKENS, REPLICAS = 2, 10, 64, 8
SETTLED_S = 300
"""Growth counts from here on: the window is full, and everything has been imported."""


def hour_in_a_kernel(seconds: int = HOUR_S) -> dict[str, float]:
    """The figures of `replay`, run in a kernel."""
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3")
    try:
        here = str(Path(__file__).parent)
        code = f"import sys; sys.path.insert(0, {here!r})\n"
        code += f"import _replay; _replay.replay({seconds})"
        told: list[str] = []

        def hear(message: dict[str, Any]) -> None:
            if message["msg_type"] == "stream":
                told.append(message["content"]["text"])

        reply = client.execute_interactive(code, output_hook=hear, timeout=1800)
        assert reply["content"]["status"] == "ok", reply["content"]
        figures: dict[str, float] = json.loads("".join(told).strip().splitlines()[-1])
        return figures
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def replay(seconds: int, drawings_a_second: float = 0.0) -> None:
    """Play it, as fast as it goes or at that many drawings a second; print the figures as JSON."""
    import psutil

    process, before = psutil.Process(), 0.0
    with tempfile.TemporaryDirectory() as folder:
        updates = _updates(Path(folder), seconds, drawings_a_second)
        cpu = time.process_time()
        for now in updates:
            if now == min(SETTLED_S, seconds // 2):
                gc.collect()
                before = process.memory_info().rss
        cpu = time.process_time() - cpu
    gc.collect()
    grown = process.memory_info().rss - before
    figures = {
        "dashboard_core_share": round(cpu / seconds, 4),
        "kernel_growth_mb": round(grown / 1e6, 1),
        "dashboard_update_ms": round(cpu / seconds / UPDATES_A_SECOND * 1e3, 1),
        "replayed_s": seconds,
    }
    print(json.dumps(figures))


def _updates(folder: Path, seconds: int, drawings_a_second: float) -> Iterator[float]:
    from IPython.display import display

    from serving.spec.model import deployment_name
    from workbench import LoadSpec, ModelSpec, Poisson, Prices, RandomPrompts, Run, ServiceSpec
    from workbench.cost.series import CostSeries
    from workbench.dashboard.controller import Controller, Settings
    from workbench.dashboard.readings import readings
    from workbench.dashboard.state import LiveState
    from workbench.dashboard.view import View
    from workbench.loadgen.handle import LiveLoad
    from workbench.loadgen.live_runner import LiveLoadRunner
    from workbench.loadgen.progress import NoProgress

    spec, run = ServiceSpec(model=ModelSpec(id="engine")), Run.create(folder, {})
    deployment = deployment_name(spec.model)
    cost = CostSeries(spec, Prices(cpu_hour=1.0), keep=180)
    state = LiveState([deployment], window_s=180, cost=cost)
    load = LoadSpec(arrivals=Poisson(rate=10), prompts=RandomPrompts(input=64, output=64))
    running = LiveLoad(0, lambda: 0.0, load=load)
    silent = NoProgress(0, None, "")
    drive = LiveLoadRunner(None, load, [], running, run, silent, state.ended)  # type: ignore[arg-type]
    controller = Controller(None, load, begin=print, post=print)  # type: ignore[arg-type]
    view = View(Settings(10, 20, 1.0, 64, 128, 4, 8), controller, state.frames([]))
    display(view.box)
    began = time.monotonic()
    for second in range(seconds):
        for sample in _samples(deployment, second):
            run.append_telemetry(sample)
            state.sampled(sample)
        for record in _records(second):
            state.sent([record.sent_s or 0.0])
            drive._keep(record)
        for half in range(UPDATES_A_SECOND):
            now = second + 1.5 + half / UPDATES_A_SECOND
            state.advance(now)
            frames = state.frames([])
            view.draw(frames, max(0.0, now - 180), now)
            view.show_readings(readings(running, frames))
            if drawings_a_second:
                due = began + (second * UPDATES_A_SECOND + half + 1) / drawings_a_second
                time.sleep(max(0.0, due - time.monotonic()))
        yield second


def _samples(deployment: str, second: int) -> Iterator[Any]:
    from workbench.records import DecisionSample, DeploymentSample, ReplicaSample

    counts = {"target": REPLICAS, "running": REPLICAS, "starting": 0, "stopping": 0}
    at = float(second)
    yield DeploymentSample(time_s=at, deployment=deployment, desired=second % 9, **counts)
    if second % 60 == 0:
        yield DecisionSample(
            time_s=at, deployment=deployment, from_target=REPLICAS - 1, to_target=REPLICAS
        )
    for replica in range(REPLICAS):
        yield ReplicaSample(
            time_s=at,
            deployment=deployment,
            replica=f"r{replica}",
            node="n",
            running_requests=(second + replica) % 7,
            waiting_requests=second % 3,
            kv_cache_usage=(second % 100) / 100,
        )


def _records(second: int) -> Iterator[Any]:
    from workbench.records import RequestRecord

    for number in range(REQUESTS_A_SECOND):
        sent = second + number / REQUESTS_A_SECOND
        times = tuple(sent + 0.1 + 0.01 * (token + number % 3) for token in range(TOKENS))
        yield RequestRecord(
            request_id=f"{second}-{number}",
            scheduled_s=sent,
            sent_s=sent,
            first_token_s=times[0],
            end_s=times[-1],
            token_times_s=times,
            prompt_tokens=64,
            output_tokens=TOKENS,
            status="ok",
            error=None,
            model="engine",
            tenant=None,
        )
