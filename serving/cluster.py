"""Attach to a Ray cluster or start one here, and say whether a service fits on it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from serving.auth import KEY_VARIABLE
from serving.errors import ClusterError, MissingPackageError, PortTakenError

if TYPE_CHECKING:
    from serving.spec import ModelSpec, ServiceSpec

METRICS_INTERVAL_MS = 1000
SERVE_FLAGS = {
    # Direct streaming: HAProxy hands each request straight to the replica's own HTTP server.
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
}
"""Read when Ray Serve is imported, so they hold only on a cluster where it starts with them."""

SERVE_TUNING = {
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
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
    that holds the cluster where this project started it; None on one that only was attached to.
    """

    address: str
    supervisor: subprocess.Popen[str] | None = None

    @property
    def ours(self) -> bool:
        """Whether this project started the cluster, and so ends it."""
        return self.supervisor is not None


_current: Cluster | None = None


def current() -> Cluster | None:
    """The cluster this process is connected to, or None."""
    return _current if _current is not None and _alive() else None


def _alive() -> bool:
    import ray

    return bool(ray.is_initialized())


def connect(spec: ServiceSpec | None = None, address: str | None = None) -> Cluster:
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
        if wanted in (None, "auto", running.address):
            return running
        raise ClusterError(
            f"address = {wanted!r}, but this process is connected to {running.address}. "
            "Delete its deployments first, or use another kernel."
        )
    _require_ray()
    _require_flags()
    os.environ.update(SERVE_FLAGS | SERVE_TUNING | QUIET)
    _current = _attach(wanted) if wanted else _start(spec)
    return _current


def announce(spec: ServiceSpec, address: str | None) -> str:
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
    """Connect to a running cluster, shipping our packages (and the embedded model) to its nodes."""
    import ray

    # A cluster with token authentication refuses a driver that does not announce it.
    _use_token(create=False)
    try:
        context = ray.init(
            address=address,
            namespace="llm-workbench",
            runtime_env={"py_modules": _packages(), "env_vars": QUIET},
            log_to_driver=False,
            logging_level="warning",
        )
    except Exception as error:
        raise ClusterError(
            f"address = {address!r} is not a Ray cluster this process can join "
            f"({type(error).__name__}: {_first_line(error)}). Check the address, that its Ray is "
            f"{ray.__version__} on Python {sys.version_info.major}.{sys.version_info.minor}, and "
            "its token (RAY_AUTH_TOKEN)."
        ) from None
    return Cluster(address=context.address_info["gcs_address"])


def _packages() -> list[str]:
    """The folders that nodes import from: this package, and what stands beside it for the load."""
    ours = Path(__file__).parent
    beside = ours.parent / "workbench"
    return [str(ours), *([str(beside)] if beside.is_dir() else [])]


def _has_token() -> bool:
    default = Path.home() / ".ray" / "auth_token"
    return any(os.environ.get(f"RAY_AUTH_TOKEN{tail}") for tail in ("", "_PATH")) or (
        default.exists()
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


def _start(spec: ServiceSpec | None) -> Cluster:
    """Start a local cluster under a supervisor that ends it when this process ends."""
    import ray

    _use_token(create=True)
    state = Path(tempfile.mkdtemp(prefix="llm-workbench-"))
    port = free_port()
    arguments = [
        f"--port={port}",
        "--node-ip-address=127.0.0.1",
        f"--num-cpus={_logical_cpus(spec.model if spec else None)}",
        "--dashboard-host=127.0.0.1",
        f"--ray-client-server-port={free_port()}",
        "--dashboard-agent-listen-port=0",
        "--disable-usage-stats",
        "--system-config=" + json.dumps({"metrics_report_interval_ms": METRICS_INTERVAL_MS}),
    ]
    supervisor = subprocess.Popen(
        [sys.executable, "-m", "serving.supervisor", str(state), *arguments],
        env=_inherited() | haproxy_environment(state) | _python_path(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert supervisor.stdout is not None
    if supervisor.stdout.readline().strip() != "started":
        log = state / "ray-start.log"
        words = log.read_text()[-1500:] if log.exists() else ""
        supervisor.communicate()
        raise ClusterError(f"Ray did not start on this machine. Its last words:\n{words}")
    context = ray.init(
        address=f"127.0.0.1:{port}",
        namespace="llm-workbench",
        log_to_driver=False,
        logging_level="warning",
    )
    return Cluster(address=context.address_info["gcs_address"], supervisor=supervisor)


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


def _logical_cpus(model: ModelSpec | None) -> int:
    """Enough for every replica: on one machine, CPUs are what Ray schedules by, not a limit."""
    needed = model.num_cpus * model.workers * model.scaling.max_replicas if model else 0
    return max(os.cpu_count() or 1, 8, int(needed + 1))


def _inherited() -> dict[str, str]:
    """This process's environment without the key: every process of the cluster would have it."""
    return {name: value for name, value in os.environ.items() if name != KEY_VARIABLE}


def _python_path() -> dict[str, str]:
    """Let every process of a local cluster import our packages, wherever it was started from."""
    root = str(Path(__file__).parents[1])
    return {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}


def haproxy_environment(state: Path) -> dict[str, str]:
    """Files and ports of HAProxy that by default are the same for every cluster of a host."""
    names = {
        "CONFIG_FILE_LOC": "haproxy.cfg",
        "SOCKET_PATH": "admin.sock",
        "SERVER_STATE_BASE": "",
        "SERVER_STATE_FILE": "server-state",
        "METRICS_SOCKET_PATH": "metrics.sock",
    }
    files = {f"RAY_SERVE_HAPROXY_{key}": str(state / name) for key, name in names.items()}
    ports = {f"RAY_SERVE_HAPROXY_{key}_PORT": str(free_port()) for key in ("METRICS", "STATS")}
    return files | ports


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def check_port(host: str, port: int) -> None:
    """Raise :class:`PortTakenError` if ``port`` has a listener on ``host``."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortTakenError(
                f"port = {port} on host = {host!r} cannot be listened on ({error.strerror}). "
                "Choose another port, or port = 0 for a free one."
            ) from None
