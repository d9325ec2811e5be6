"""Join a Ray cluster that somebody else runs: by its own address, or by Ray Client."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving.errors import ClusterError

CLIENT = "ray://"
PROBE_S = 10.0
PROBES = {
    # What a control service answers, and what Ray Client's server does: any answer but
    # "unimplemented" will do, a refusal for want of a token among them.
    True: "/ray.rpc.RayletDriver/ClusterInfo",
    False: "/ray.rpc.NodeInfoGcsService/CheckAlive",
}


def check_address(address: str) -> None:
    """Raise :class:`ClusterError` unless a Ray cluster answers at ``address``.

    ``ray.init`` itself goes on trying for minutes. An address without a port, such as ``auto``, is
    left to Ray.
    """
    client = address.startswith(CLIENT)
    place = address.removeprefix(CLIENT)
    if "://" in place or "/" in place:
        raise ClusterError(
            f"address = {address!r} is no address of a Ray cluster: give host:port of its control "
            "service (6379 by default), or ray://host:port of its Ray Client (10001 by default)."
        )
    if client and ":" not in place:
        raise ClusterError(f"address = {address!r} has no port: Ray Client's own is 10001.")
    if ":" in place and (problem := _silence(place, PROBES[client])):
        kinds = ("control service (6379 by default)", "Ray Client (ray://host:10001 by default)")
        raise ClusterError(
            f"address = {address!r} is not a Ray cluster's {kinds[client]}: {problem}. "
            f"Check the host and the port, and that no firewall stands between; a cluster's "
            f"{kinds[not client]} is another address."
        )


def _silence(place: str, method: str) -> str | None:
    """Why nothing of Ray's answers there within ``PROBE_S``, or None."""
    import grpc

    with grpc.insecure_channel(place) as channel:
        try:
            channel.unary_unary(method)(b"", timeout=PROBE_S)
        except grpc.RpcError as error:
            code = error.code()
            if code == grpc.StatusCode.UNAVAILABLE:
                return "nothing answers there"
            if code == grpc.StatusCode.DEADLINE_EXCEEDED:
                return f"what listens there gave no answer within {PROBE_S:g} s"
            if code == grpc.StatusCode.UNIMPLEMENTED:
                return "another service answers there"
    return None


def join(address: str, environment: dict[str, str]) -> str:
    """Connect to a running cluster, shipping our packages (and the embedded model) to its nodes.

    Returns the address of its control service. Raises :class:`ClusterError`.
    """
    import ray

    check_address(address)
    try:
        try:
            _init(address, environment)
        except ConnectionAbortedError:
            # Ray Client's server starts a process a client, at the first port from 23000 on that it
            # has not used itself; where another cluster of the host has, the next try goes on.
            _init(address, environment)
    except Exception as error:
        raise ClusterError(refusal(address, error)) from None
    return str(ray.get_runtime_context().gcs_address)


def _init(address: str, environment: dict[str, str]) -> None:
    import ray

    ray.init(
        address=address,
        namespace="llm-workbench",
        runtime_env={"py_modules": packages(), "env_vars": environment},
        log_to_driver=False,
        logging_level="warning",
    )


def refusal(address: str, error: BaseException) -> str:
    """Why Ray did not let this process in, in one sentence and what to do."""
    if (versions := mismatch(str(error))) is not None:
        theirs, ours = versions
        return (
            f"address = {address!r}: the cluster runs {theirs} and this process {ours}, and Ray "
            "joins only equal ones. Use an environment with the cluster's versions, or another "
            "cluster."
        )
    # Ray Client's server answers with a whole traceback, whose last line says what went wrong.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    cause = " ".join(dict.fromkeys([lines[0], lines[-1]]))[:400]
    return (
        f"address = {address!r} is not a Ray cluster this process can join "
        f"({type(error).__name__}: {cause}). Check the address and its token (RAY_AUTH_TOKEN)."
    )


def mismatch(message: str) -> tuple[str, str] | None:
    """The cluster's versions and ours, as Ray's own refusal names them; None for another one."""
    found = re.findall(r"^\s*Ray: (\S+)\s+Python: (\S+)", message, re.MULTILINE)
    if len(found) != 2:
        return None
    theirs, ours = (f"Ray {ray} on Python {python}" for ray, python in found)
    return theirs, ours


def packages() -> list[str]:
    """The folders that nodes import from: this package, and what stands beside it for the load."""
    ours = Path(__file__).parents[1]
    beside = ours.parent / "workbench"
    return [str(ours), *([str(beside)] if beside.is_dir() else [])]


def actor_class(name: str) -> str:
    """The class of one of Serve's own actors: a proxy's tells which kind of proxy it is."""
    return str(_on_cluster(_actor_class, name))


def ask_actor(name: str, question: Callable[[Any], Any]) -> Any:
    """What ``question`` returns in the process of one of Serve's own actors."""
    return _on_cluster(_ask, name, question)


def _on_cluster(call: Callable[..., Any], *arguments: Any) -> Any:
    """Ray Client's actor handles know less than others, so under it a task on the cluster calls."""
    import ray

    if not ray.util.client.ray.is_connected():
        return call(*arguments)
    task: Any = ray.remote(num_cpus=0)(call)
    return ray.get(task.remote(*arguments))


def _actor_class(name: str) -> str:
    import ray

    descriptor = ray.get_actor(name, namespace="serve")._ray_actor_creation_function_descriptor
    return str(descriptor.class_name)


def _ask(name: str, question: Callable[[Any], Any]) -> Any:
    import ray

    return ray.get(ray.get_actor(name, namespace="serve").__ray_call__.remote(question))
