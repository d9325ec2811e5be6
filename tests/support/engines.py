"""Holding the engines of this process's cluster still."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from serving.cluster.supervisor import descendants

PAUSE_S = 30
"""Seconds that a pause may last: Serve replaces a replica after three failed health checks."""


def engine_cores() -> list[psutil.Process]:
    """The core processes of all engines of this cluster."""
    found = []
    for pid in descendants(os.getpid()):
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if " ".join(process.cmdline()).startswith("VLLM::EngineCore"):
                found.append(process)
    return found


@contextmanager
def paused_engines() -> Iterator[None]:
    """Stop all engines meanwhile: no answer ends, however long the rest of the machine takes."""
    cores = engine_cores()
    assert cores, "no engine runs"
    try:
        for core in cores:
            core.suspend()
        yield
    finally:
        for core in cores:
            with suppress(psutil.NoSuchProcess):
                core.resume()
