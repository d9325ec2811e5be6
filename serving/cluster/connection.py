"""The Ray cluster of this process: attached to, or started here."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from serving.cluster import attach
from serving.cluster.attach import one_line
from serving.cluster.discovery import resolve_auto
from serving.cluster.local_head import end_head, start_head, use_token
from serving.cluster.ports import check_port
from serving.compat.ray import forget_serve_client, imported_without_haproxy, started_by_init
from serving.compat.variables import HA_PROXY, METRICS_ENV, QUIET, SERVE_TUNING
from serving.errors import ClusterError, MissingPackageError

if TYPE_CHECKING:
    from serving.spec.service import EndpointSpec


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that this process is connected to.

    Attributes:
        address: The address of its control service (host:port).
        supervisor: The process that ends the cluster, if this project started it; else None.
        attached_by: The address it was attached to by, if any.
        endpoint: The port it reserves for HTTP, if this project started it.
    """

    address: str
    supervisor: subprocess.Popen[str] | None = None
    attached_by: str | None = None
    endpoint: int | None = None

    @property
    def ours(self) -> bool:
        """Whether this project started the cluster, and so ends it."""
        return self.supervisor is not None

    @property
    def host(self) -> str:
        """Where this process reaches the cluster's head."""
        if self.ours:
            return "127.0.0.1"
        place = (self.attached_by or "").removeprefix(attach.CLIENT)
        return (place if ":" in place else self.address).rpartition(":")[0].strip("[]")


_current: Cluster | None = None


def current() -> Cluster | None:
    """Return the cluster that this process is connected to, or None."""
    return _current if _current is not None and _is_connected() else None


def _is_connected() -> bool:
    import ray

    return bool(ray.is_initialized())


def connect(spec: EndpointSpec | None = None, address: str | None = None) -> Cluster:
    """Connect to the cluster at ``address`` or ``RAY_ADDRESS``, or else to a local one.

    A local cluster is started if none runs. It has enough CPUs for ``spec``, if given.

    Raises:
        ClusterError: The address does not answer, `auto` is not the address of one cluster for
            several processes, Ray does not start, or Ray Serve was imported without its flags.
        PortTakenError: A port that the cluster needs has a listener.
        MissingPackageError: Ray is not installed.
    """
    global _current
    target = address or os.environ.get("RAY_ADDRESS")
    running = current()
    if running is not None:
        if target in (None, "auto", running.address, running.attached_by):
            return running
        raise ClusterError(
            f"address = {target!r}, but this process is connected to {running.address}. "
            "Delete its deployments first, or use another kernel."
        )
    _require_ray()
    _require_flags()
    os.environ.update(SERVE_TUNING | QUIET)
    _current = _attach(target) if target else _start(spec)
    return _current


def describe_connection(spec: EndpointSpec, address: str | None) -> str:
    """Return what :func:`connect` will do.

    Raises:
        PortTakenError: A local cluster would be started, and the spec's port has a listener.
    """
    if target := address or os.environ.get("RAY_ADDRESS"):
        return f"connecting to the Ray cluster at {target}"
    if spec.port:
        check_port(spec.host, spec.port)
    return "starting Ray"


def disconnect() -> None:
    """Leave the cluster; one that this project started ends, with all of its processes."""
    global _current
    cluster, _current = _current, None
    try:
        _leave()
    finally:  # Also after a second interrupt.
        if cluster is not None and cluster.supervisor is not None:
            end_head(cluster.supervisor)


def _leave() -> None:
    import ray

    ray.shutdown()
    forget_serve_client()


def _require_ray() -> None:
    if find_spec("ray") is None:
        raise MissingPackageError("The package 'ray' is not installed. Install it: make setup")


def _require_flags() -> None:
    """Ray Serve reads its flags when it is imported, in this process too."""
    if imported_without_haproxy():
        raise ClusterError(
            f"ray.serve was imported before deploy, and without {HA_PROXY}=1, which direct "
            "streaming needs. Restart the kernel and call deploy first, or set the variable before "
            "the import."
        )


def _attach(address: str) -> Cluster:
    # A cluster with token authentication rejects a driver that does not announce its token.
    use_token(create=False)
    target = resolve_auto() if address == "auto" else address
    gcs_address = attach.attach_to(target, QUIET | METRICS_ENV)
    if address == "auto" and started_by_init():
        _leave()
        raise ClusterError(
            f"address = 'auto', but the only Ray cluster on this machine, {gcs_address}, is "
            "private to the process that called ray.init, and ends with it. Leave address and "
            "RAY_ADDRESS out to start a cluster, or start one for several processes (ray start "
            "--head)."
        )
    return Cluster(address=gcs_address, attached_by=address)


def _start(spec: EndpointSpec | None) -> Cluster:
    head = start_head(spec)
    try:
        import ray

        context = ray.init(
            address=f"127.0.0.1:{head.port}",
            namespace="llm-workbench",
            log_to_driver=False,
            logging_level="warning",
        )
    except BaseException as error:
        try:
            _leave()
        finally:
            end_head(head.supervisor)
        if not isinstance(error, Exception):
            raise
        raise ClusterError(
            f"Ray started on this machine, but ended at once or does not answer: {one_line(error)}"
        ) from None
    address = context.address_info["gcs_address"]
    return Cluster(address, supervisor=head.supervisor, endpoint=head.endpoint)
