"""The Ray clusters of this host, and the one that the address ``auto`` means."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from serving.cluster.supervisor import parents
from serving.compat.ray import GCS_FLAG, RAYLET
from serving.errors import ClusterError

SUPERVISOR = "serving.cluster.supervisor"


class LocalCluster(NamedTuple):
    """A Ray cluster with a node on this host."""

    address: str
    """The address of its control service."""
    owner: int | None
    """The process that it is private to and ends with, or None."""


def local_clusters() -> list[LocalCluster]:
    """Return the clusters with a node on this host, as the command lines of its processes show."""
    by_pid = parents()
    clusters = {}
    for pid in by_pid:
        command = _command(pid)
        if not command or Path(command[0]).name != RAYLET:
            continue
        addresses = [part.removeprefix(GCS_FLAG) for part in command if part.startswith(GCS_FLAG)]
        for address in addresses[:1]:
            clusters[address] = LocalCluster(address, _owner(pid, by_pid))
    return sorted(clusters.values())


def _command(pid: int) -> list[str]:
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return []


def _owner(pid: int, by_pid: dict[int, int]) -> int | None:
    """Return the process that started the supervisor above ``pid``, or None without one."""
    while pid in by_pid:
        if SUPERVISOR in _command(pid):
            return by_pid[pid]
        pid = by_pid[pid]
    return None


def resolve_auto() -> str:
    """Return the address of the only cluster on this host; ``auto`` if none is seen here.

    Raises:
        ClusterError: Several clusters run, or the only one is private to another process.
    """
    clusters = local_clusters()
    if not clusters:
        return "auto"  # Ray reports it, or knows a cluster whose processes are hidden from here.
    (cluster, *others) = clusters
    if others:
        raise ClusterError(
            f"address = 'auto', but {len(clusters)} Ray clusters run on this machine: "
            f"{', '.join(map(_describe, clusters))}. Give the address of one of them, as address "
            "or RAY_ADDRESS, or leave both out to start a cluster."
        )
    if cluster.owner is not None:
        raise ClusterError(
            f"address = 'auto', but the only Ray cluster on this machine is {_describe(cluster)} "
            "and ends with it. Leave address and RAY_ADDRESS out to start a cluster, or start one "
            "for several processes (ray start --head)."
        )
    return cluster.address


def _describe(cluster: LocalCluster) -> str:
    owner = "" if cluster.owner is None else f" (private to process {cluster.owner})"
    return f"{cluster.address}{owner}"
