"""A local cluster: its environment, its CPUs, and a start that fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT

from serving.cluster import local_head
from serving.cluster.local_head import (
    inherited_environment,
    logical_cpus,
    own_environment,
    start_head,
    start_problem,
)
from serving.cluster.ports import Ports
from serving.cluster.supervisor import descendants
from serving.errors import ClusterError
from serving.spec.model import ModelSpec
from serving.spec.scaling import ScalingSpec
from serving.spec.service import ServiceSpec
from serving.spec.tenants import KEY_VARIABLE, TENANT_KEY_VARIABLE


def test_two_clusters_share_neither_files_nor_ports(tmp_path: Path) -> None:
    with closing(Ports()) as first_ports, closing(Ports()) as second_ports:
        first = own_environment(tmp_path / "first", first_ports)
        second = own_environment(tmp_path / "second", second_ports)
    assert first.keys() == second.keys()
    assert len({value for name, value in first.items() if "PORT" in name}) == 8
    for name in first:
        assert first[name] != second[name], name
        if "PORT" not in name:
            assert Path(first[name]).is_relative_to(tmp_path / "first")


@pytest.mark.parametrize(
    ("model", "minimum"),
    [
        ({}, 8),
        ({"num_cpus": 4, "scaling": ScalingSpec(max_replicas=6)}, 24),
        ({"num_cpus": 3, "tensor_parallel_size": 2, "pipeline_parallel_size": 2}, 12),
    ],
)
def test_there_are_cpus_for_every_replica(model: dict[str, Any], minimum: int) -> None:
    assert logical_cpus(ServiceSpec(model=ModelSpec(**model))) >= minimum


def test_the_clusters_processes_do_not_inherit_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (KEY_VARIABLE, TENANT_KEY_VARIABLE):
        monkeypatch.setenv(name, "sk-a-key-of-enough-length")
        assert name not in inherited_environment()
    assert inherited_environment()["PATH"] == os.environ["PATH"]


class TestFailedStart:
    """Ray gives a head 30 s to start, which is too short on a busy machine."""

    def attempts(self, monkeypatch: pytest.MonkeyPatch, log: str) -> list[str]:
        """The logs of the attempts that have been made, each of which fails."""
        made: list[str] = []

        def start_supervisor(spec: Any, ports: Ports, folder: Path) -> tuple[None, str]:
            made.append(log)
            ports.close()
            return None, log

        monkeypatch.setattr(local_head, "_start_supervisor", start_supervisor)
        monkeypatch.setattr(local_head, "use_token", lambda create: None)
        return made

    def test_a_timeout_is_retried_and_then_blamed_on_the_machine(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = self.attempts(monkeypatch, "The current node timed out during startup. This ...")
        with pytest.raises(ClusterError, match=r"in 3 attempts: it took .* the machine is busy"):
            start_head(None)
        assert len(made) == 3

    def test_an_agent_without_a_message_is_started_again(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = self.attempts(monkeypatch, AGENT)
        with pytest.raises(ClusterError, match="in 3 attempts: its dashboard_agent ended early"):
            start_head(None)
        assert len(made) == 3

    def test_any_other_failure_is_reported_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made = self.attempts(monkeypatch, "ValueError: no such option")
        with pytest.raises(ClusterError, match="no such option"):
            start_head(None)
        assert len(made) == 1


TIMED_OUT = """Traceback (most recent call last):
Exception: The current node timed out during startup. This could happen because ...
"""
AGENT = """
[2026-11-27 22:54:31,451 E 41 68] (raylet) agent_manager.cc:87: The raylet exited immediately \
because one Ray agent failed, agent_name = dashboard_agent.
"""


@pytest.mark.parametrize(
    ("log", "parts"),
    [
        ("Error: No such option: --prot\n", ["Error: No such option: --prot"]),
        ("  File x\nOSError: [Errno 28] No space left on device: '/a'\n", ["No space left", "/a"]),
        ("OSError: [Errno 30] Read-only file system: '/a'\nx\n", ["Read-only file system", "/a"]),
        (f"{TIMED_OUT}\nImportError: no x{AGENT}", ["dashboard_agent ended early", "no x"]),
        (f"OSError: [Errno 28] No space left on device{AGENT}", ["No space left on device"]),
        (AGENT, ["dashboard_agent ended early", "without a message", "memory"]),
        ("", ["without a message"]),
    ],
)
def test_the_cause_of_a_failed_start_is_one_line(log: str, parts: list[str]) -> None:
    problem = start_problem(log).problem
    assert "\n" not in problem
    for part in parts:
        assert part in problem


@pytest.mark.parametrize(
    ("log", "transient"),
    [(TIMED_OUT, True), (AGENT, True), (f"ImportError: no x{AGENT}", False), ("x", False)],
)
def test_a_failure_without_a_cause_may_be_transient(log: str, transient: bool) -> None:
    assert start_problem(log).transient is transient


# A stand-in for `ray start` that hangs, so that the process that asked for it can be interrupted.
HANG = """
import os, subprocess, sys, time
from pathlib import Path
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
Path(os.environ["STAND_IN"]).touch()
time.sleep(600)
"""
START = """
import sys
from serving.cluster.local_head import start_head
try:
    start_head(None)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.stdin.read()  # The kernel lives on, and the traceback keeps the frames.
"""


@pytest.mark.parametrize("times", [1, 3])
def test_an_interrupt_while_ray_starts_leaves_nothing(tmp_path: Path, times: int) -> None:
    interrupt_start(tmp_path, times)


@pytest.mark.timing
def test_an_interrupted_start_ends_within_two_seconds(tmp_path: Path) -> None:
    # The shortest of three: the machine may pause one of the processes for longer.
    ends = (interrupt_start(tmp_path / str(n), 1) for n in range(3))
    assert any(seconds < 2 for seconds in ends)


def has_command(pid: int) -> bool:
    """Return whether the process runs. A zombie has no command line."""
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes() != b""
    except OSError:
        return False


def interrupt_start(tmp_path: Path, times: int) -> float:
    """Interrupt a process that starts Ray; the seconds until every process of Ray has ended."""
    package = tmp_path / "stand-in" / "ray" / "scripts"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "scripts.py").write_text(HANG)
    mark = tmp_path / "started"
    environment = {
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "stand-in"), str(ROOT)]),
        "STAND_IN": str(mark),
        "RAY_AUTH_MODE": "disabled",
    }
    with subprocess.Popen(
        [sys.executable, "-c", START],
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as kernel:
        while not mark.exists():
            assert kernel.poll() is None
            time.sleep(0.02)
        pids = descendants(kernel.pid)
        assert len(pids) == 3
        for _ in range(times):
            kernel.send_signal(signal.SIGINT)
            time.sleep(0.05)
        start = time.monotonic()
        while alive := [pid for pid in pids if has_command(pid)]:
            assert time.monotonic() - start < 60, alive
            time.sleep(0.02)
        elapsed_s = time.monotonic() - start
        # The kernel lives on: the processes ended by the interrupt, not with it.
        assert times > 1 or kernel.poll() is None
        kernel.kill()
    return elapsed_s
