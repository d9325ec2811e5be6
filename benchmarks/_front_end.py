"""CPU time of the front ends of two servers: everything between the client and the engine core."""

from __future__ import annotations

from contextlib import suppress

import psutil

ENGINE = ("EngineCore", "VLLM::Worker", "resource_tracker", "forkserver")
"""In the command of a process that belongs to the engine on both sides."""
OURS = (
    "haproxy",
    "ray::ServeReplica",
    "ray::ProxyActor",
    "ray::HAProxy",
    "ray::ServeController",
    "vllm-rs",
)
"""In the command of a process of our path; Ray's other daemons do not touch a request."""


def commands(pids: list[int]) -> dict[int, str]:
    """Return the commands of those processes that exist."""
    found = {}
    for pid in pids:
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            found[pid] = f"{process.name()} {' '.join(process.cmdline())}"
    return found


def of_bare(pids: list[int]) -> list[int]:
    """Return the processes of vLLM's own server that are not its engine's."""
    return [pid for pid, command in commands(pids).items() if not any(e in command for e in ENGINE)]


def of_ours(pids: list[int]) -> list[int]:
    """Return the processes of our path that are not the engine's."""
    return [pid for pid, command in commands(pids).items() if any(o in command for o in OURS)]


def cpu_s(pids: list[int]) -> float:
    """Return the CPU time, user and system, that the processes have used, in seconds."""
    total = 0.0
    for pid in pids:
        with suppress(psutil.Error):
            times = psutil.Process(pid).cpu_times()
            total += times.user + times.system
    return total
