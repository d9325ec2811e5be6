"""Clients and proxies run before engines, by the niceness of each process."""

from __future__ import annotations

from contextlib import suppress

import psutil
import pytest

from serving.cluster.supervisor import descendants
from serving.cpu import ENGINE_NICENESS, WORKER_NICENESS
from workbench.endpoints.deployed import Endpoint


@pytest.mark.engine
def test_an_engine_has_a_lower_priority_than_the_rest_of_the_cluster(endpoint: Endpoint) -> None:
    by_name: dict[str, set[int]] = {}
    for pid in descendants(psutil.Process().pid):
        with suppress(psutil.NoSuchProcess):  # It has ended.
            process = psutil.Process(pid)
            title = (process.cmdline() or [""])[0].split(" ")[0]
            name = title.split(".")[0]  # Ray appends the method that an actor runs.
            by_name.setdefault(name, set()).add(process.nice())
    own = psutil.Process().nice()  # That of a shell is 0.
    for name in ("VLLM::EngineCore", "VLLM::Worker"):
        assert by_name[name] == {own + WORKER_NICENESS + ENGINE_NICENESS}, name
    for name in (f"ray::ServeReplica:{endpoint.spec.name}:router", "ray::HAProxyManager"):
        assert by_name[name] == {own + WORKER_NICENESS}, name
