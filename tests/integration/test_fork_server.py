"""The processes of a real engine are forked from its replica's server."""

from __future__ import annotations

import os
from contextlib import suppress

import psutil
import pytest

from serving.cluster.supervisor import descendants
from workbench.endpoints.deployed import Endpoint

pytestmark = pytest.mark.engine


def processes(name: str) -> list[psutil.Process]:
    """The processes of this cluster whose title begins with `name`."""
    found = []
    for pid in descendants(os.getpid()):
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if " ".join(process.cmdline()).startswith(name):
                found.append(process)
    return found


def replica_of(server: psutil.Process) -> str:
    parent = server.parent()
    assert parent is not None
    return " ".join(parent.cmdline())


def test_core_and_worker_are_forked_from_their_replicas_server(endpoint: Endpoint) -> None:
    servers = {process.pid: process for process in processes("VLLM::ForkServer")}
    for name in ("VLLM::EngineCore", "VLLM::Worker"):
        (process,) = processes(name)
        assert process.ppid() in servers, name
        assert "ServeReplica" in replica_of(servers[process.ppid()])


def test_the_worker_computes_with_the_libraries_that_vllm_chooses(endpoint: Endpoint) -> None:
    """A forked process cannot load them itself: the server has been loaded with them."""
    (worker,) = processes("VLLM::Worker")
    server = worker.parent()
    assert server is not None
    preloaded = server.environ()["LD_PRELOAD"].split(":")
    assert any("libgomp" in path for path in preloaded)
    assert set(map(os.path.realpath, preloaded)) <= _maps(worker.pid)


def _maps(pid: int) -> set[str]:
    """The files that a process has mapped."""
    with open(f"/proc/{pid}/maps", encoding="utf-8") as lines:
        return {line.split(maxsplit=5)[5].strip() for line in lines if "/" in line}


def test_little_memory_is_the_servers_own(endpoint: Endpoint) -> None:
    """What it has imported is shared with the processes that it forked."""
    (worker,) = processes("VLLM::Worker")
    server = worker.parent()
    assert server is not None
    memory = server.memory_full_info()
    assert memory.uss < 0.25 * memory.rss
