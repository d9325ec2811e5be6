"""Attach to a Ray cluster or start one here, and say whether a service fits on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from serving.cluster import attach
from serving.cluster.ports import Ports, check_port
from serving.cpu import WORKERS
from serving.errors import ClusterError, MissingPackageError
from serving.spec.tenants import KEY_VARIABLE

if TYPE_CHECKING:
    from serving.spec.service import EndpointSpec

START_ATTEMPTS, TOO_SLOW = 3, "timed out during startup"
"""Ray gives a node 30 s to come up, and on a busy machine that is too short now and then."""

METRICS_INTERVAL_MS = 1000
METRICS_ENV = {"RAY_metrics_report_interval_ms": str(METRICS_INTERVAL_MS)}
"""For the actors whose figures are watched, on a cluster that somebody else started."""

FORWARD_BODY = {
    "RAY_SERVE_INGRESS_REQUEST_ROUTER_FORWARD_BODY": "1",
    # HAProxy holds a request of up to this size in memory; of a larger one the prefix is not seen.
    "RAY_SERVE_HAPROXY_INGRESS_REQUEST_ROUTER_BUFSIZE": str(2**20),
}
"""For routing by a prompt's prefix on the direct path; its price is a second copy of each body."""

SERVE_TUNING = {
    # A proxy that has died is missed after three looks: 6 s instead of 30.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
    # On a busy machine a proxy that starts is not ready within Serve's 5 s, which kills it then.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    # A replica that is not needed may end what it answers; one that hangs never would.
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
    "RAYLLM_ENABLE_REQUEST_PROMPT_LOGS": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
}
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster this process is connected to.

    ``address`` is the address of its control service (host:port). ``supervisor`` is the process
    that holds the cluster where this project started it; None on one that only was attached to,
    at the address ``given``. ``endpoint`` is the port it keeps for HTTP, if it is ours.
    """

    address: str
    supervisor: subprocess.Popen[str] | None = None
    given: str | None = None
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
        place = (self.given or "").removeprefix(attach.CLIENT)
        return (place if ":" in place else self.address).rpartition(":")[0].strip("[]")


_current: Cluster | None = None


def current() -> Cluster | None:
    """The cluster this process is connected to, or None."""
    return _current if _current is not None and _alive() else None


def _alive() -> bool:
    import ray

    return bool(ray.is_initialized())


def connect(spec: EndpointSpec | None = None, address: str | None = None) -> Cluster:
    """The cluster at ``address`` or ``RAY_ADDRESS``, else a local one, started if need be.

    A local one has room for ``spec``, if given.

    Raises:
        ClusterError: the address does not answer, or its Serve runs without what this needs.
        PortTakenError: the spec's port has a listener (checked where the endpoint would be local).
    """
    global _current
    wanted = address or os.environ.get("RAY_ADDRESS")
    running = current()
    if running is not None:
        if wanted in (None, "auto", running.address, running.given):
            return running
        raise ClusterError(
            f"address = {wanted!r}, but this process is connected to {running.address}. "
            "Delete its deployments first, or use another kernel."
        )
    _require_ray()
    _require_flags()
    os.environ.update(SERVE_TUNING | QUIET)
    _current = _attach(wanted) if wanted else _start(spec)
    return _current


def describe_connection(spec: EndpointSpec, address: str | None) -> str:
    """What :func:`connect` will do; refuses a taken port while nothing has started yet."""
    if wanted := address or os.environ.get("RAY_ADDRESS"):
        return f"connecting to the Ray cluster at {wanted}"
    if spec.port:
        check_port(spec.host, spec.port)
    return "starting Ray"


def disconnect() -> None:
    """Leave the cluster; one that this project started ends, with every process of it."""
    global _current
    cluster, _current = _current, None
    import ray

    ray.shutdown()
    if (serve := sys.modules.get("ray.serve.context")) is not None:
        # Serve knows its controller's cluster by the driver's job id, and every cluster's first
        # driver has the same: the next cluster would be asked for this one's controller.
        serve._disconnect()
    if cluster is not None and cluster.supervisor is not None:
        assert cluster.supervisor.stdin is not None
        cluster.supervisor.stdin.close()
        cluster.supervisor.wait(timeout=30)


def _require_ray() -> None:
    from importlib.util import find_spec

    if find_spec("ray") is None:
        raise MissingPackageError("The package 'ray' is not installed. Install it: make setup")


def _require_flags() -> None:
    """Ray Serve reads its flags when it is imported, in this process too."""
    constants = sys.modules.get("ray.serve._private.constants")
    if constants is not None and not constants.RAY_SERVE_ENABLE_HA_PROXY:
        raise ClusterError(
            "ray.serve was imported before deploy, and without RAY_SERVE_ENABLE_HA_PROXY=1, which "
            "direct streaming needs. Restart the kernel and call deploy first, or set the variable "
            "before the import."
        )


def _attach(address: str) -> Cluster:
    # A cluster with token authentication refuses a driver that does not announce it.
    _use_token(create=False)
    return Cluster(address=attach.join(address, QUIET | METRICS_ENV), given=address)


def _has_token() -> bool:
    default = Path.home() / ".ray" / "auth_token"
    return any(os.environ.get(f"RAY_AUTH_TOKEN{tail}") for tail in ("", "_PATH")) or (
        default.exists()
    )


def _start(spec: EndpointSpec | None) -> Cluster:
    """Start a local cluster under a supervisor that ends it when this process ends."""
    import ray

    _use_token(create=True)
    for _ in range(START_ATTEMPTS):
        ports = Ports()
        supervisor, words = _supervised(spec, ports)
        if supervisor is not None:
            break
        if TOO_SLOW not in words:
            raise ClusterError(f"Ray did not start on this machine. Its last words:\n{words}")
    else:
        raise ClusterError(
            f"Ray did not start within 30 s, {START_ATTEMPTS} times: the machine is busy with "
            "other work. End that, or try again later."
        )
    context = ray.init(
        address=f"127.0.0.1:{ports.head}",
        namespace="llm-workbench",
        log_to_driver=False,
        logging_level="warning",
    )
    address = context.address_info["gcs_address"]
    return Cluster(address, supervisor=supervisor, endpoint=ports.endpoint)


def _supervised(
    spec: EndpointSpec | None, ports: Ports
) -> tuple[subprocess.Popen[str] | None, str]:
    """The supervisor of a new head, which keeps its ports; else the last words of Ray's start."""
    state = Path(tempfile.mkdtemp(prefix="llm-workbench-"))
    config = {"metrics_report_interval_ms": METRICS_INTERVAL_MS, "worker_niceness": WORKERS}
    arguments = [
        f"--port={ports.head}",
        "--node-ip-address=127.0.0.1",
        f"--num-cpus={_logical_cpus(spec)}",
        "--dashboard-host=127.0.0.1",
        f"--ray-client-server-port={ports.client}",
        "--dashboard-agent-listen-port=0",
        "--disable-usage-stats",
        "--system-config=" + json.dumps(config),
    ]
    supervisor = subprocess.Popen(
        [sys.executable, "-m", "serving.cluster.supervisor", str(state), *arguments],
        env=_inherited() | own_environment(state, ports) | _python_path(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        pass_fds=[ports.fileno()],
    )
    ports.close()
    assert supervisor.stdout is not None
    if supervisor.stdout.readline().strip() != "started":
        log = state / "ray-start.log"
        words = log.read_text()[-1500:] if log.exists() else ""
        supervisor.communicate()
        return None, words
    return supervisor, ""


def _use_token(*, create: bool) -> None:
    """Keep Ray's token authentication on, as ``ray.init`` does for a cluster of its own.

    ``ray start`` wants a token that exists, and a driver that has imported Ray must be told anew.
    """
    from ray._private.authentication import authentication_token_setup as setup

    if create and not _has_token():
        setup.generate_and_save_token()
        (Path.home() / ".ray" / "auth_token").chmod(0o600)
    if _has_token() and os.environ.get("RAY_AUTH_MODE", "token") == "token":
        setup._enable_token_auth()


def _logical_cpus(spec: EndpointSpec | None) -> int:
    """Enough for every replica: on one machine, CPUs are what Ray schedules by, not a limit."""
    engines = spec.engines if spec else ()
    needed = sum(one.num_cpus * one.workers * one.scaling.max_replicas for one in engines)
    needed += spec.auxiliary_cpus if spec else 0
    return max(os.cpu_count() or 1, 8, int(needed + 1))


def _inherited() -> dict[str, str]:
    """This process's environment without the key: every process of the cluster would have it."""
    return {name: value for name, value in os.environ.items() if name != KEY_VARIABLE}


def _python_path() -> dict[str, str]:
    """Let every process of a local cluster import our packages, wherever it was started from."""
    root = str(Path(__file__).parents[2])
    return {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}


def own_environment(state: Path, ports: Ports) -> dict[str, str]:
    """Files and ports of Ray Serve that by default are the same for every cluster of a host."""
    names = {
        "CONFIG_FILE_LOC": "haproxy.cfg",
        "SOCKET_PATH": "admin.sock",
        "SERVER_STATE_BASE": "",
        "SERVER_STATE_FILE": "server-state",
        "METRICS_SOCKET_PATH": "metrics.sock",
    }
    files = {f"RAY_SERVE_HAPROXY_{key}": str(state / name) for key, name in names.items()}
    return files | ports.variables()
