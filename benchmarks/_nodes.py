"""A Ray cluster of several nodes on this one machine, and what runs on it, by process id.

Ray's own `cluster_utils.Cluster`: each node has a raylet, workers and an object store of its own.
The head has no CPUs, as on a real cluster whose head only directs. Everything that the cluster
started is ended with it, and `left_over` says what was not.
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

STORE = 100 * 2**20
START_S = 180.0


class Nodes:
    """The nodes by name; `kill` ends one as a power cut would."""

    def __init__(self, workers: dict[str, dict[str, Any]]) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False}
        head |= {"dashboard_port": free_port(), "ray_client_server_port": free_port()}
        config = {"metrics_report_interval_ms": 1000, "health_check_period_ms": 1000}
        config |= {"health_check_failure_threshold": 3}
        self._cluster = Cluster(True, False, head_node_args={**head, "_system_config": config})
        self.address = str(self._cluster.address)
        self._nodes = {
            name: self._cluster.add_node(wait=False, object_store_memory=STORE, **fields)
            for name, fields in workers.items()
        }
        self._cluster.wait_for_nodes(START_S)

    def id(self, name: str) -> str:
        """Ray's id of a node."""
        return str(self._nodes[name].node_id)

    def name(self, node_id: str) -> str:
        """The name of a node by Ray's id; the head has none of ours."""
        return next((n for n, node in self._nodes.items() if node.node_id == node_id), "head")

    def kill(self, name: str) -> None:
        """End a node and all that runs on it at once, without a word to anyone."""
        node = self._nodes.pop(name)
        raylet = node.all_processes["raylet"][0].process
        below = psutil.Process(raylet.pid).children(recursive=True)
        for process in [psutil.Process(raylet.pid), *below]:
            with _gone_is_fine():
                process.kill()
        self._cluster.remove_node(node, allow_graceful=False)

    def processes(self, words: str) -> list[psutil.Process]:
        """Processes of the cluster whose command line begins with or names `words`."""
        found = []
        for process in _ours(set()):
            with _gone_is_fine():
                if process.name() == words or words in " ".join(process.cmdline()[:1]):
                    found.append(process)
        return found

    def actors(self, kind: str) -> dict[int, str]:
        """The processes of an actor class, and the node of each by our name for it."""
        from ray._private.state import actors

        return {
            found["Pid"]: self.name(found["Address"]["NodeID"])
            for found in actors().values()
            if found["ActorClassName"] == kind and found["State"] == "ALIVE"
        }

    def shutdown(self) -> None:
        """End every node."""
        self._cluster.shutdown()


@contextmanager
def nodes(workers: dict[str, dict[str, Any]]) -> Iterator[Nodes]:
    """The cluster, for the length of a `with`; what outlives it is ended after all."""
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
            with _gone_is_fine():
                process.kill()
        for name, value in saved.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        shutil.rmtree(state, ignore_errors=True)


def left_over(before: set[int], within_s: float) -> list[psutil.Process]:
    """Processes of a cluster that started after `before` and are still there after `within_s`.

    They are known by this process's mark in their environment: it started the cluster.
    """
    deadline = time.monotonic() + within_s
    while (left := _ours(before)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def _ours(before: set[int]) -> list[psutil.Process]:
    mine = f"LLM_WORKBENCH_NODES={os.getpid()}"
    found = []
    for process in psutil.process_iter():
        if process.pid in before or process.pid == os.getpid():
            continue
        with _gone_is_fine():
            if process.status() != psutil.STATUS_ZOMBIE and mine in _environment(process.pid):
                found.append(process)
    return found


def _environment(pid: int) -> set[str]:
    raw = (Path("/proc") / str(pid) / "environ").read_bytes()
    return set(raw.decode(errors="replace").split("\0"))


@contextmanager
def _gone_is_fine() -> Iterator[None]:
    try:
        yield
    except (psutil.Error, OSError):
        return
