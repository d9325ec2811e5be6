"""Connect to a Ray cluster that is already running, by its own address or by Ray Client."""

from __future__ import annotations

from pathlib import Path

from serving.compat.ray import CLIENT_PROBE, GCS_PROBE, version_mismatch
from serving.errors import ClusterError

CLIENT = "ray://"
PROBE_S = 10.0


def check_address(address: str) -> None:
    """Raise :class:`ClusterError` unless a Ray cluster answers at ``address``.

    ``ray.init`` itself retries for minutes. An address without a port, such as ``auto``, is left
    to Ray.
    """
    client = address.startswith(CLIENT)
    place = address.removeprefix(CLIENT)
    if "://" in place or "/" in place:
        raise ClusterError(
            f"address = {address!r} is not the address of a Ray cluster. Give host:port of its "
            "control service (6379 by default), or ray://host:port of its Ray Client (10001 by "
            "default)."
        )
    if client and ":" not in place:
        raise ClusterError(
            f"address = {address!r} has no port. Add it; that of Ray Client is 10001 by default."
        )
    probe = CLIENT_PROBE if client else GCS_PROBE
    if ":" in place and (problem := probe_failure(place, probe)):
        kinds = ("control service (6379 by default)", "Ray Client (ray://host:10001 by default)")
        raise ClusterError(
            f"address = {address!r} is not a Ray cluster's {kinds[client]}: {problem}. "
            f"Check the host, the port and any firewall; a cluster's {kinds[not client]} has "
            "another address."
        )


def probe_failure(place: str, method: str) -> str | None:
    """Return why no service of Ray answers at ``place`` within ``PROBE_S``, or None.

    Any answer to the gRPC ``method`` other than "unimplemented" counts, including a refusal because
    there is no token.
    """
    import grpc

    with grpc.insecure_channel(place) as channel:
        try:
            channel.unary_unary(method)(b"", timeout=PROBE_S)
        except grpc.RpcError as error:
            code = error.code()
            if code == grpc.StatusCode.UNAVAILABLE:
                return "nothing answers there"
            if code == grpc.StatusCode.DEADLINE_EXCEEDED:
                return f"the service there did not answer within {PROBE_S:g} s"
            if code == grpc.StatusCode.UNIMPLEMENTED:
                return "another service answers there"
    return None


def attach_to(address: str, environment: dict[str, str]) -> str:
    """Connect to a running cluster, and send our packages (with the embedded models) to its nodes.

    Args:
        address: The cluster's address.
        environment: Variables of every process that this one starts there.

    Returns:
        The address of the cluster's control service.

    Raises:
        ClusterError: No cluster answers, or it rejects this process.
    """
    import ray

    check_address(address)
    try:
        try:
            _init(address, environment)
        except ConnectionAbortedError:
            # The server of Ray Client starts a process per client, at the first port from 23000 on
            # that it has not used itself. If another cluster of the host uses that port, the next
            # attempt takes the next one.
            _init(address, environment)
    except Exception as error:
        raise ClusterError(connect_error(address, error)) from None
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


def connect_error(address: str, error: BaseException) -> str:
    """Return why Ray rejected this process and what to do, in one line."""
    if (versions := version_mismatch(str(error))) is not None:
        theirs, ours = versions
        return (
            f"address = {address!r}: the cluster runs {theirs} and this process {ours}, and Ray "
            "needs equal versions. Use an environment with the cluster's versions, or another "
            "cluster."
        )
    return (
        f"address = {address!r} is not a Ray cluster that this process can join "
        f"({one_line(error)}). Check the address and its token (RAY_AUTH_TOKEN)."
    )


def one_line(error: BaseException) -> str:
    """Return an error of Ray in one line of at most some 400 characters."""
    # The server of Ray Client answers with a whole traceback, whose last line has the cause.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    cause = " ".join(dict.fromkeys([lines[0], lines[-1]]))[:400]
    return f"{type(error).__name__}: {cause}"


def packages() -> list[str]:
    """Return the folders that nodes import from: this package, and ``workbench`` for the load."""
    serving = Path(__file__).parents[1]
    workbench = serving.parent / "workbench"
    return [str(serving), *([str(workbench)] if workbench.is_dir() else [])]
