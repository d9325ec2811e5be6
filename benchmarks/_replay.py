"""Replay an hour of a busy dashboard in a real kernel: its CPU time and its memory growth.

`hour_in_a_kernel` starts a kernel as JupyterLab does, and runs `replay` in it as fast as possible.
A second has samples of 8 replicas, 10 requests of 64 tokens and two drawings, which pass through
the dashboard's own state and view and the load's own bookkeeping. Every message to the browser is
created and sent, but not received. `browser_memory.py` calls `replay` from a notebook in
JupyterLab instead, at a pace that the browser can follow.
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
"""Growth counts from this second on: the window is full, and everything has been imported."""


def hour_in_a_kernel(seconds: int = HOUR_S) -> dict[str, float]:
    """Run `replay` in a kernel, and return its figures."""
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3")
    try:
        here = str(Path(__file__).parent)
        code = f"import sys; sys.path.insert(0, {here!r})\n"
        code += f"import _replay; _replay.replay({seconds})"
        output: list[str] = []

        def receive(message: dict[str, Any]) -> None:
            if message["msg_type"] == "stream":
                output.append(message["content"]["text"])

        reply = client.execute_interactive(code, output_hook=receive, timeout=1800)
        assert reply["content"]["status"] == "ok", reply["content"]
        figures: dict[str, float] = json.loads("".join(output).strip().splitlines()[-1])
        return figures
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def replay(seconds: int, drawings_a_second: float = 0.0) -> None:
    """Replay so many seconds, and print the figures as JSON.

    Args:
        seconds: Seconds of the dashboard to replay.
        drawings_a_second: Pace in drawings per second of real time; default: as fast as possible.
    """
    import psutil

    process, settled = psutil.Process(), 0.0
    with tempfile.TemporaryDirectory() as folder:
        updates = _updates(Path(folder), seconds, drawings_a_second)
        cpu = time.process_time()
        for now in updates:
            if now == min(SETTLED_S, seconds // 2):
                gc.collect()
                settled = process.memory_info().rss
        cpu = time.process_time() - cpu
    gc.collect()
    growth = process.memory_info().rss - settled
    figures = {
        "dashboard_core_share": round(cpu / seconds, 4),
        "kernel_growth_mb": round(growth / 1e6, 1),
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
    from workbench.dashboard.state import KEEP_S, LiveState
    from workbench.dashboard.view import View
    from workbench.loadgen.handle import LiveLoad
    from workbench.loadgen.progress import NoProgress
    from workbench.loadgen.runner import LoadRunner
    from workbench.loadgen.sources import LiveSource
    from workbench.metrics.slo import SLO

    spec, run = ServiceSpec(model=ModelSpec(id="engine")), Run.create(folder, {})
    deployment = deployment_name(spec.model)
    cost = CostSeries(spec, Prices(cpu_hour=1.0), keep=KEEP_S)
    state = LiveState([deployment], cost=cost, slo=SLO(ttft_ms=1000))
    load = LoadSpec(arrivals=Poisson(rate=10), prompts=RandomPrompts(input=64, output=64))
    running = LiveLoad(0, lambda: 0.0, load=load)
    no_progress = NoProgress(0, None, "")
    source = LiveSource(running, (), 1)
    runner = LoadRunner(None, load, source, running, run, no_progress, state.ended)  # type: ignore[arg-type]
    controller = Controller(None, load, begin=print, post=print)  # type: ignore[arg-type]
    controller.running = running
    view = View(Settings(10, 20, 1.0, 64, 128), controller, state, report=print, window_s=300)
    display(view.widget)  # type: ignore[no-untyped-call]
    started = time.monotonic()
    for second in range(seconds):
        for sample in _samples(deployment, second):
            run.append_telemetry(sample)
            state.sampled(sample)
        for record in _records(second):
            state.sent([record.sent_s or 0.0])
            runner._keep(record)
        for half in range(UPDATES_A_SECOND):
            now = second + 1.5 + half / UPDATES_A_SECOND
            state.advance(now)
            view.set_state("running")
            view.draw(state.frames([]), now)
            if drawings_a_second:
                due = started + (second * UPDATES_A_SECOND + half + 1) / drawings_a_second
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
