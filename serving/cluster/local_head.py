"""A local Ray cluster: its head, started under a supervisor, its token and its environment."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from serving.cluster import user_folder
from serving.cluster.ports import Ports
from serving.compat.ray import AGENT_FAILED, START_TIMED_OUT, enable_token_auth
from serving.compat.variables import HAPROXY_PROGRAM, LOCAL_SERVE, haproxy_files
from serving.cpu import WORKER_NICENESS
from serving.errors import ClusterError
from serving.proxy.install import install
from serving.spec.tenants import KEY_VARIABLE, TENANT_KEY_VARIABLE

if TYPE_CHECKING:
    from serving.spec.service import EndpointSpec

START_ATTEMPTS = 3
"""Ray gives a node 30 s to start, which is sometimes too short on a busy machine."""
LINE = 300
"""Characters of a line of a log that are reported."""


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
        ClusterError: Ray did not start, no block of ports is free, or no folder can be written.
    """
    folder = user_folder.user_folder(user_folder.RAY_SOCKET)
    use_token(create=True)
    for _ in range(START_ATTEMPTS):
        ports = Ports()
        supervisor, log = _start_supervisor(spec, ports, folder)
        if supervisor is not None:
            return LocalHead(supervisor, ports.head, ports.endpoint)
        failed = start_problem(log)
        if not failed.transient:
            raise ClusterError(f"Ray did not start on this machine: {failed.problem}")
    raise ClusterError(
        f"Ray did not start on this machine in {START_ATTEMPTS} attempts: {failed.problem}"
    )


class FailedStart(NamedTuple):
    """Why ``ray start`` failed."""

    problem: str
    """One line."""
    transient: bool = False
    """Whether another attempt may succeed."""


def start_problem(log: str) -> FailedStart:
    """Return why ``ray start`` failed, from the end of its log.

    A start that took too long is transient. So is the end of an agent that left no message, for
    example because another program took its port.
    """
    output, agent_failed, agent = log.partition(AGENT_FAILED)
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        if (text := os.strerror(number)) in output:
            line = next(line for line in lines if text in line)
            return FailedStart(f"{text} ({line[:LINE]}).")
    if agent_failed:
        # The raylet's own line, which ends with the mark, follows the last words of the agent.
        cause = lines[-2][:LINE] if len(lines) > 1 else ""
        return FailedStart(
            f"its {agent.split('.')[0].strip()} ended early ({cause or 'without a message'}). "
            "Check the installation of Ray (make setup), and that the machine has free memory.",
            transient=not cause,
        )
    if START_TIMED_OUT in output:
        return FailedStart(
            "it took more than 30 s, because the machine is busy with other work. End that work, "
            "or try again later.",
            transient=True,
        )
    return FailedStart(lines[-1][:LINE] if lines else "it ended without a message.")


def _start_supervisor(
    spec: EndpointSpec | None, ports: Ports, folder: Path
) -> tuple[subprocess.Popen[str] | None, str]:
    """Return the supervisor of a new head, which holds its ports, or the end of Ray's log."""
    state = user_folder.cluster_folder()
    # Ray opens its own folder to every user, so it is not the user's folder itself.
    folders = [str(state), str(folder / "ray")]
    environment = inherited_environment() | user_folder.home_environment(folder)
    supervisor = subprocess.Popen(
        [sys.executable, "-m", "serving.cluster.supervisor", *folders, *_head_options(spec, ports)],
        env=LOCAL_SERVE | environment | own_environment(state, ports) | _python_path(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        pass_fds=[ports.fileno()],
    )
    try:
        ports.close()
        assert supervisor.stdout is not None
        if supervisor.stdout.readline().strip() == "started":
            return supervisor, ""
        assert supervisor.stdin is not None
        supervisor.stdin.close()
        log = supervisor.stdout.read()
    except BaseException:
        end_head(supervisor)
        raise
    supervisor.wait()
    return None, log


def end_head(supervisor: subprocess.Popen[str]) -> None:
    """End a head, also one that is starting, and wait until no process of it is left."""
    assert supervisor.stdin is not None
    supervisor.stdin.close()
    supervisor.wait(timeout=30)


def _head_options(spec: EndpointSpec | None, ports: Ports) -> list[str]:
    """The options for ``ray start --head``."""
    return [
        f"--port={ports.head}",
        "--node-ip-address=127.0.0.1",
        f"--num-cpus={logical_cpus(spec)}",
        "--dashboard-host=127.0.0.1",
        f"--ray-client-server-port={ports.client}",
        "--dashboard-agent-listen-port=0",
        "--disable-usage-stats",
        # A log monitor sends the workers' output to drivers, which ours turn off (log_to_driver).
        "--include-log-monitor=false",
        "--system-config=" + json.dumps({"worker_niceness": WORKER_NICENESS}),
    ]


def use_token(*, create: bool) -> None:
    """Turn Ray's token authentication on, as ``ray.init`` does for a cluster of its own.

    ``ray start`` needs a token that exists, and a process that has imported Ray reads it only when
    asked to.

    Args:
        create: Whether to create a token if this user does not have one.
    """
    if not user_folder.names_token(os.environ):
        file = user_folder.create_token() if create else user_folder.token_file()
        if file is None:
            return
        if file.parent.name != ".ray":  # Ray itself only looks in the home.
            os.environ["RAY_AUTH_TOKEN_PATH"] = str(file)
    if os.environ.get("RAY_AUTH_MODE", "token") == "token":
        enable_token_auth()


def logical_cpus(spec: EndpointSpec | None) -> int:
    """Return enough CPUs for every replica of ``spec``.

    On one machine, Ray schedules by CPUs but does not limit their use.
    """
    engines = spec.engines if spec else ()
    needed = sum(model.num_cpus * model.workers * model.scaling.max_replicas for model in engines)
    needed += spec.auxiliary_cpus if spec else 0
    return max(os.cpu_count() or 1, 8, int(needed + 1))


def inherited_environment() -> dict[str, str]:
    """Return this process's environment without the keys, which no process of Ray may have."""
    keys = (KEY_VARIABLE, TENANT_KEY_VARIABLE)
    return {name: value for name, value in os.environ.items() if name not in keys}


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
