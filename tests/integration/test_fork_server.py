"""The processes of a real engine are forked from its replica's server."""

from __future__ import annotations

import os
import time
from contextlib import suppress

import psutil
import pytest

from serving.cluster.supervisor import descendants
from workbench.endpoints.deployed import Endpoint

pytestmark = pytest.mark.engine
ENDED_S = 120


def processes(name: str) -> list[psutil.Process]:
    """The processes of this cluster whose title begins with `name`."""
    found = []
    for pid in descendants(os.getpid()):
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if " ".join(process.cmdline()).startswith(name):
                found.append(process)
    return found


def the_only(name: str) -> psutil.Process:
    """The one process with this title, once those of an earlier test's service have ended."""
    deadline = time.monotonic() + ENDED_S
    while len(found := processes(name)) != 1:
        assert time.monotonic() < deadline, f"{len(found)} processes are {name}"
        time.sleep(0.2)
    return found[0]


def replica_of(server: psutil.Process) -> str:
    parent = server.parent()
    assert parent is not None
    return " ".join(parent.cmdline())


def test_core_and_worker_are_forked_from_their_replicas_server(endpoint: Endpoint) -> None:
    for name in ("VLLM::EngineCore", "VLLM::Worker"):
        process = the_only(name)
        servers = {server.pid: server for server in processes("VLLM::ForkServer")}
        assert process.ppid() in servers, name
        assert "ServeReplica" in replica_of(servers[process.ppid()])


def test_the_worker_computes_with_the_libraries_that_vllm_chooses(endpoint: Endpoint) -> None:
    """A forked process cannot load them itself: the server has been loaded with them."""
    worker = the_only("VLLM::Worker")
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
    worker = the_only("VLLM::Worker")
    server = worker.parent()
    assert server is not None
    memory = server.memory_full_info()
    assert memory.uss < 0.25 * memory.rss
