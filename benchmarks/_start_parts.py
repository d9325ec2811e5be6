"""The parts of an engine's start, from the steps that its own processes note.

`start_hooks/sitecustomize.py` notes them. The parts are the gaps between steps that follow each
other, so they add up to the total.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from unittest.mock import patch

HOOKS = Path(__file__).parent / "start_hooks"
VARIABLE = "LLM_WORKBENCH_START_STEPS"

PARTS = {
    "submit": "deploy() checks and submits, and starts Ray Serve",
    "actor": "Serve and Ray create the replica's process",
    "server_imports": "the server's process imports vLLM",
    "arguments": "configuration of the engine",
    "core_imports": "the engine core's process starts and imports vLLM",
    "core": "the engine core, up to its worker's process",
    "worker_imports": "the worker's process starts and imports vLLM",
    "device": "the worker prepares its device",
    "weights": "the worker loads the weights",
    "cache_and_graphs": "KV cache, compilation and graphs",
    "server": "the engine's client and the HTTP application",
    "warm_up": "the first sampled tokens",
    "ready": "health checks, routing, and the wait of who started it",
    "first_token": "one request",
}
"""Each part and what happens in it, in the order of the table."""


class Steps(NamedTuple):
    """The times at which steps happened, for one start."""

    times: dict[str, float]
    pids: dict[str, int]


@contextmanager
def noting() -> Iterator[Callable[[], Steps]]:
    """Have the processes started meanwhile note their steps.

    Yields:
        A function that returns the steps since its last call.
    """
    with TemporaryDirectory(prefix="llm-workbench-start-") as folder:
        file = Path(folder) / "steps.jsonl"
        path = os.pathsep.join(filter(None, [str(HOOKS), os.environ.get("PYTHONPATH")]))
        with patch.dict(os.environ, {VARIABLE: str(file), "PYTHONPATH": path}):
            yield lambda: _take(file)


def _take(file: Path) -> Steps:
    """Read the steps and empty the file. Of a step that was noted twice, the first counts."""
    steps = Steps({}, {})
    for line in file.read_text().splitlines():
        entry = json.loads(line)
        steps.times.setdefault(entry["step"], entry["at"])
        steps.pids.setdefault(entry["step"], entry["pid"])
    file.write_text("")
    return steps


def parts(
    steps: Steps, started: float, ready: float, ended: float, submitted: float | None = None
) -> dict[str, float]:
    """Return the seconds of each part. A part that a start does not have is left out.

    Call it while the engine runs.

    Args:
        steps: What the processes noted.
        started: When the start was requested.
        submitted: When `deploy()` had submitted the service.
        ready: When the service was ready.
        ended: When the first token arrived.
    """
    worker = "CPUWorker" if "CPUWorker.init_device begins" in steps.times else "Worker"
    core, loop = (
        steps.pids.get("EngineCoreProc.__init__ begins"),
        steps.pids.get("Worker.load_model begins"),
    )
    ends = {
        "submit": submitted,
        "actor": steps.times.get("serving.engine.entry begins"),
        "server_imports": _first(
            steps, "serving.engine.replica ends", "vllm.v1.engine.async_llm ends"
        ),
        "arguments": born(core) if core else None,
        "core_imports": steps.times.get("EngineCoreProc.__init__ begins"),
        "core": born(loop) if loop and loop != core else None,
        "worker_imports": steps.times.get(f"{worker}.init_device begins"),
        "device": steps.times.get("Worker.load_model begins"),
        "weights": steps.times.get("Worker.load_model ends"),
        "cache_and_graphs": steps.times.get("EngineCoreProc.__init__ ends"),
        "server": _first(steps, "warm_up begins", "AsyncLLM.__init__ ends"),
        "warm_up": steps.times.get("warm_up ends"),
        "ready": ready,
        "first_token": ended,
    }
    seconds, before = {}, started
    for name, at in ends.items():
        if at is not None:
            # A process may have been started before it was needed.
            seconds[name] = max(0.0, at - before)
            before = max(before, at)
    return seconds


def now() -> float:
    """Return the seconds of the clock by which the kernel dates processes."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def born(pid: int) -> float:
    """Return when a process was created, on the clock of `now`, to 10 ms."""
    # psutil.Process.create_time adds the boot time in whole seconds, which is up to 1 s off.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _first(steps: Steps, *names: str) -> float | None:
    return next((steps.times[name] for name in names if name in steps.times), None)


def table(columns: dict[str, dict[str, float]]) -> str:
    """Return a table in Markdown: a row for each part, a column for each kind of start, in s."""
    lines = [
        "| part | " + " | ".join(columns) + " |",
        "| --- |" + " --- |" * len(columns),
    ]
    for name, meaning in PARTS.items():
        cells = [f"{c[name]:.1f}" if name in c else "" for c in columns.values()]
        lines.append(f"| {meaning} | " + " | ".join(cells) + " |")
    totals = " | ".join(f"{sum(c.values()):.1f}" for c in columns.values())
    return "\n".join([*lines, f"| total | {totals} |"])
