"""A Ray cluster of several nodes on one machine, and its processes.

It uses Ray's `cluster_utils.Cluster`, where each node has its own raylet, workers and object store.
The head node has no CPUs, as in a real cluster whose head only coordinates. Everything that the
cluster started ends with it, and `left_over` returns what did not.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from serving.cluster.local_head import own_environment, use_token
from serving.cluster.ports import Ports, free_port
from serving.compat.variables import QUIET, SERVE_FLAGS, SERVE_TUNING

STORE_BYTES = 100 * 2**20
START_TIMEOUT_S = 180.0


class Nodes:
    """The nodes by name. `kill` ends one as a power failure would."""

    def __init__(self, workers: dict[str, dict[str, Any]]) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        head |= {"dashboard_port": free_port(), "ray_client_server_port": free_port()}
        config = {"metrics_report_interval_ms": 1000, "health_check_period_ms": 1000}
        config |= {"health_check_failure_threshold": 3}
        self._cluster = Cluster(True, False, head_node_args={**head, "_system_config": config})
        self.address = str(self._cluster.address)
        self._nodes = {
            name: self._cluster.add_node(wait=False, object_store_memory=STORE_BYTES, **fields)
            for name, fields in workers.items()
        }
        self._cluster.wait_for_nodes(START_TIMEOUT_S)

    def id(self, name: str) -> str:
        """Return Ray's id of a node."""
        return str(self._nodes[name].node_id)

    def name(self, node_id: str) -> str:
        """Return the name of a node by Ray's id, or "head"."""
        return next((n for n, node in self._nodes.items() if node.node_id == node_id), "head")

    def kill(self, name: str) -> None:
        """Kill a node and everything that runs on it at once, without a graceful shutdown."""
        node = self._nodes.pop(name)
        raylet = node.all_processes["raylet"][0].process
        children = psutil.Process(raylet.pid).children(recursive=True)
        for process in [psutil.Process(raylet.pid), *children]:
            with _ignore_ended():
                process.kill()
        self._cluster.remove_node(node, allow_graceful=False)

    def processes(self, command: str) -> list[psutil.Process]:
        """Return the cluster's processes whose name or first argument is `command`."""
        matching = []
        for process in _ours(set()):
            with _ignore_ended():
                if process.name() == command or command in " ".join(process.cmdline()[:1]):
                    matching.append(process)
        return matching

    def actors(self, kind: str) -> dict[int, str]:
        """Return the process ids of an actor class, with the name of each one's node."""
        from ray._private.state import actors

        return {
            actor["Pid"]: self.name(actor["Address"]["NodeID"])
            for actor in actors().values()
            if actor["ActorClassName"] == kind and actor["State"] == "ALIVE"
        }

    def shutdown(self) -> None:
        """End every node."""
        self._cluster.shutdown()


@contextmanager
def nodes(workers: dict[str, dict[str, Any]]) -> Iterator[Nodes]:
    """Run a cluster for the duration of a `with` block, and kill what outlives it."""
    before = set(psutil.pids())
    state = Path(tempfile.mkdtemp(prefix="nodes-"))
    ports = Ports()
    variables = SERVE_FLAGS | SERVE_TUNING | QUIET | own_environment(state, ports)
    variables["LLM_WORKBENCH_NODES"] = str(os.getpid())
    saved = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    use_token(create=True)
    cluster = Nodes(workers)
    try:
        yield cluster
    finally:
        from serving.cluster import connection as clusters

        clusters.disconnect()
        cluster.shutdown()
        ports.close()
        for process in left_over(before, within_s=10):
            with _ignore_ended():
                process.kill()
        for name, value in saved.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        shutil.rmtree(state, ignore_errors=True)


def left_over(before: set[int], within_s: float) -> list[psutil.Process]:
    """Return processes of the cluster that are not in `before` and still exist after `within_s`.

    They are recognized by a variable in their environment that this process has set.
    """
    deadline = time.monotonic() + within_s
    while (processes := _ours(before)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return processes


def _ours(before: set[int]) -> list[psutil.Process]:
    mark = f"LLM_WORKBENCH_NODES={os.getpid()}"
    matching = []
    for process in psutil.process_iter():
        if process.pid in before or process.pid == os.getpid():
            continue
        with _ignore_ended():
            if process.status() != psutil.STATUS_ZOMBIE and mark in _environment(process.pid):
                matching.append(process)
    return matching


def _environment(pid: int) -> set[str]:
    raw = (Path("/proc") / str(pid) / "environ").read_bytes()
    return set(raw.decode(errors="replace").split("\0"))


@contextmanager
def _ignore_ended() -> Iterator[None]:
    try:
        yield
    except (psutil.Error, OSError):
        return
