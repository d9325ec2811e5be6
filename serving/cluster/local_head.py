"""A local Ray cluster: its head, started under a supervisor, its token and its environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from serving.cluster.ports import Ports
from serving.compat.ray import START_TIMED_OUT, create_auth_token, enable_token_auth
from serving.compat.variables import HAPROXY_PROGRAM, METRICS_INTERVAL_MS, haproxy_files
from serving.cpu import WORKER_NICENESS
from serving.errors import ClusterError
from serving.proxy.install import install
from serving.spec.tenants import KEY_VARIABLE

if TYPE_CHECKING:
    from serving.spec.service import EndpointSpec

START_ATTEMPTS = 3
"""Ray gives a node 30 s to start, which is sometimes too short on a busy machine."""


class LocalHead(NamedTuple):
    """A head that was started here."""

    supervisor: subprocess.Popen[str]
    """Ends the head when its standard input is closed."""
    port: int
    """The port of the control service."""
    endpoint: int
    """The port reserved for HTTP."""


def start_head(spec: EndpointSpec | None) -> LocalHead:
    """Start a head that ends when this process ends, with enough CPUs for ``spec``.

    Raises:
        ClusterError: Ray did not start, or no block of ports is free.
    """
    use_token(create=True)
    for _ in range(START_ATTEMPTS):
        ports = Ports()
        supervisor, log = _start_supervisor(spec, ports)
        if supervisor is not None:
            return LocalHead(supervisor, ports.head, ports.endpoint)
        if START_TIMED_OUT not in log:
            raise ClusterError(
                f"Ray did not start on this machine. The end of its log says why:\n{log}"
            )
    raise ClusterError(
        f"Ray did not start within 30 s in {START_ATTEMPTS} attempts: the machine is busy with "
        "other work. End that work, or try again later."
    )


def _start_supervisor(
    spec: EndpointSpec | None, ports: Ports
) -> tuple[subprocess.Popen[str] | None, str]:
    """Return the supervisor of a new head, which holds its ports, or the end of Ray's log."""
    state = Path(tempfile.mkdtemp(prefix="llm-workbench-"))
    command = [sys.executable, "-m", "serving.cluster.supervisor", str(state)]
    supervisor = subprocess.Popen(
        command + _head_options(spec, ports),
        env=inherited_environment() | own_environment(state, ports) | _python_path(),
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
        end = log.read_text()[-1500:] if log.exists() else ""
        supervisor.communicate()
        return None, end
    return supervisor, ""


def _head_options(spec: EndpointSpec | None, ports: Ports) -> list[str]:
    """The options for ``ray start --head``."""
    config = {
        "metrics_report_interval_ms": METRICS_INTERVAL_MS,
        "worker_niceness": WORKER_NICENESS,
    }
    return [
        f"--port={ports.head}",
        "--node-ip-address=127.0.0.1",
        f"--num-cpus={logical_cpus(spec)}",
        "--dashboard-host=127.0.0.1",
        f"--ray-client-server-port={ports.client}",
        "--dashboard-agent-listen-port=0",
        "--disable-usage-stats",
        "--system-config=" + json.dumps(config),
    ]


def use_token(*, create: bool) -> None:
    """Turn Ray's token authentication on, as ``ray.init`` does for a cluster of its own.

    ``ray start`` needs a token that exists, and a process that has imported Ray reads it only when
    asked to.

    Args:
        create: Whether to create a token if this user does not have one.
    """
    if create and not _has_token():
        create_auth_token()
        (Path.home() / ".ray" / "auth_token").chmod(0o600)
    if _has_token() and os.environ.get("RAY_AUTH_MODE", "token") == "token":
        enable_token_auth()


def _has_token() -> bool:
    default = Path.home() / ".ray" / "auth_token"
    variables = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    return any(os.environ.get(name) for name in variables) or default.exists()


def logical_cpus(spec: EndpointSpec | None) -> int:
    """Return enough CPUs for every replica of ``spec``.

    On one machine, Ray schedules by CPUs but does not limit their use.
    """
    engines = spec.engines if spec else ()
    needed = sum(model.num_cpus * model.workers * model.scaling.max_replicas for model in engines)
    needed += spec.auxiliary_cpus if spec else 0
    return max(os.cpu_count() or 1, 8, int(needed + 1))


def inherited_environment() -> dict[str, str]:
    """Return this process's environment without the key, which no process of Ray may have."""
    return {name: value for name, value in os.environ.items() if name != KEY_VARIABLE}


def _python_path() -> dict[str, str]:
    """Let every process of a local cluster import our packages, from any working directory."""
    root = str(Path(__file__).parents[2])
    return {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}


def own_environment(state: Path, ports: Ports) -> dict[str, str]:
    """Return the variables that give a cluster its own files and ports of Ray Serve.

    By default these are the same for every cluster of a host.
    """
    program = {HAPROXY_PROGRAM: str(install(state / "proxy"))}
    return haproxy_files(state) | ports.variables() | program
