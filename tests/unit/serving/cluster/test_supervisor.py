"""The real supervisor around a stand-in for `ray start` that leaves processes behind.

Expected values come from `/proc`, read without the supervisor's own functions.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.paths import ROOT

from serving.cluster.supervisor import descendants, parents

TIMEOUT_S = 60

# A stand-in for Ray: it records its arguments, leaves a tree of processes and ends as requested.
STAND_IN = '''
import os, signal, subprocess, sys, time
from pathlib import Path

# As Ray 2.60.0 wrote it when its agent could not be imported.
RAYLET_ERROR = """Traceback (most recent call last):
ModuleNotFoundError: No module named 'aiohttp'
[2026-11-27 22:54:31,451 E 41 68] (raylet) agent_manager.cc:87: The raylet exited immediately \
because one Ray agent failed, agent_name = dashboard_agent.
The raylet fate shares with the agent. This can happen because
"""
folder = Path(os.environ["STAND_IN"])
(folder / "arguments").write_text("\\n".join(sys.argv[1:]))
(folder / "input").write_text(repr(sys.stdin.read()))
print("text on stdout", flush=True)
print("text on stderr", file=sys.stderr, flush=True)
SLEEP = "import time; time.sleep(600)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', '{SLEEP}'])"
IGNORING = (
    "import pathlib, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    f"pathlib.Path({str(folder / 'is-ignoring')!r}).touch(); {SLEEP}"
)


def leave(name, code):
    # A daemon: a session of its own, and no parent but the process that adopts it.
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            child = subprocess.Popen([sys.executable, "-c", code])
            (folder / name).write_text(f"{os.getpid()} {child.pid}")
            if name != "orphan":
                child.wait()
        os._exit(0)


leaving = [] if "--leave-nothing" in sys.argv else ["orphan", "parent"]
leaving += ["ignoring"] if "--leave-ignoring" in sys.argv else []
for name in leaving:
    leave(name, {"orphan": SLEEP, "parent": PARENT, "ignoring": IGNORING}[name])
wanted = leaving + (["is-ignoring"] if "ignoring" in leaving else [])
while not all((folder / name).exists() for name in wanted):
    time.sleep(0.01)
if "--agent-ends" in sys.argv:
    logs = Path(sys.argv[-1].removeprefix("--temp-dir=")) / f"session_1_{os.getpid()}" / "logs"
    logs.mkdir(parents=True)
    (logs / "raylet.err").write_text(RAYLET_ERROR)
if "--hang" in sys.argv or "--agent-ends" in sys.argv:
    (folder / "hangs").touch()
    time.sleep(600)
sys.exit(3 if "--fail" in sys.argv else 0)
'''

# A parent that asks for a cluster and waits, as a kernel does.
PARENT = """
import subprocess, sys
child = subprocess.Popen(
    [sys.executable, "-m", "serving.cluster.supervisor", *sys.argv[1:]],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
)
print(child.pid, child.stdout.readline().strip(), flush=True)
sys.stdin.read()
"""


@dataclass
class Sandbox:
    """The supervisor's folder, Ray's, what the stand-in recorded, and the environment of both."""

    state: Path
    ray: Path
    notes: Path
    env: dict[str, str]

    def command(self, *arguments: str) -> list[str]:
        folders = [str(self.state), str(self.ray)]
        return [sys.executable, "-m", "serving.cluster.supervisor", *folders, *arguments]

    @contextlib.contextmanager
    def supervisor(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        with self.child(self.command(*arguments)) as child:
            yield child

    @contextlib.contextmanager
    def child(self, command: list[str]) -> Iterator[subprocess.Popen[str]]:
        child = subprocess.Popen(
            command,
            env=self.env,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            yield child
        finally:
            assert child.stdin is not None
            with contextlib.suppress(OSError):
                child.stdin.close()
            try:
                child.wait(timeout=TIMEOUT_S)
            finally:
                self.clean_up(child)

    def clean_up(self, child: subprocess.Popen[str]) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert child.stdout is not None
        child.stdout.close()

    def tree(self) -> list[int]:
        """The processes that the stand-in left, and those below them."""
        files = [self.notes / name for name in ("orphan", "parent", "ignoring")]
        text = " ".join(file.read_text() for file in files if file.exists())
        mark = str(self.notes).encode()
        return sorted({int(pid) for pid in text.split() if mark in environ(int(pid))})

    def processes(self) -> list[int]:
        """The living processes that inherited the sandbox's environment."""
        mark = str(self.notes).encode()
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        return [pid for pid in pids if mark in environ(pid)]

    def wait_until_none_is_left(self) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while remaining := self.processes():
            assert time.monotonic() < deadline, f"still there: {remaining}"
            time.sleep(0.02)


def environ(pid: int) -> bytes:
    """The environment that a process was started with; empty once it has ended."""
    try:
        return (Path("/proc") / str(pid) / "environ").read_bytes()
    except OSError:
        return b""


def read_line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return make_sandbox(tmp_path)


def make_sandbox(tmp_path: Path) -> Sandbox:
    package = tmp_path / "stand-in" / "ray" / "scripts"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "scripts.py").write_text(STAND_IN)
    state, ray, notes = (tmp_path / name for name in ("state", "ray", "notes"))
    for folder in (state, ray, notes):
        folder.mkdir()
    path = os.pathsep.join([str(tmp_path / "stand-in"), str(ROOT)])
    return Sandbox(state, ray, notes, os.environ | {"PYTHONPATH": path, "STAND_IN": str(notes)})


def test_closing_the_pipe_ends_every_process_and_removes_the_folder(sandbox: Sandbox) -> None:
    with sandbox.supervisor("--leave-ignoring") as child:
        assert read_line(child) == "started"
        assert len(sandbox.tree()) == 5, "two daemons with a child each, and an orphan"
        assert sandbox.state.exists()
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(timeout=TIMEOUT_S) == 0
        # All of them ended before the supervisor.
        assert not sandbox.processes()
    assert not sandbox.state.exists()


def test_the_death_of_the_parent_ends_every_process(sandbox: Sandbox) -> None:
    with sandbox.child(
        [sys.executable, "-c", PARENT, str(sandbox.state), str(sandbox.ray)]
    ) as parent:
        supervisor, word = read_line(parent).split()
        assert word == "started"
        assert int(supervisor) in sandbox.processes()
        assert len(sandbox.tree()) == 3
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait(timeout=TIMEOUT_S)
        sandbox.wait_until_none_is_left()
    assert not sandbox.state.exists()


def test_terminating_the_supervisor_ends_every_process(sandbox: Sandbox) -> None:
    with sandbox.supervisor() as child:
        assert read_line(child) == "started"
        deadline = time.monotonic() + TIMEOUT_S
        while child.poll() is None:  # More signals must not interrupt it.
            os.kill(child.pid, signal.SIGTERM)
            time.sleep(0.05)
            assert time.monotonic() < deadline
        assert not sandbox.processes()
    assert not sandbox.state.exists()


def test_interrupting_the_notebook_does_not_end_the_cluster(sandbox: Sandbox) -> None:
    with sandbox.supervisor() as child:
        assert read_line(child) == "started"
        before = sandbox.processes()
        for _ in range(3):
            os.kill(child.pid, signal.SIGINT)
        ignored = signals(child.pid, "SigIgn")
        assert ignored & 1 << signal.SIGINT - 1
        assert child.poll() is None
        assert sandbox.processes() == before


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="a kernel without autogroups")
def test_other_sessions_run_first(sandbox: Sandbox) -> None:
    with sandbox.supervisor() as child:
        assert read_line(child) == "started"
        group = (Path("/proc") / str(child.pid) / "autogroup").read_text()
        assert group.split()[-2:] == ["nice", "15"]


def signals(pid: int, kind: str) -> int:
    """A set of signals of a process, as a bit mask."""
    lines = (Path("/proc") / str(pid) / "status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(kind)).split()[1], 16)


def test_ray_is_started_as_a_head_with_the_arguments_given(sandbox: Sandbox) -> None:
    options = ["--leave-nothing", "--port=1234", '--system-config={"a b": 1}']
    with sandbox.supervisor(*options) as child:
        assert read_line(child) == "started"
        arguments = (sandbox.notes / "arguments").read_text().split("\n")
        assert arguments == ["start", "--head", *options, f"--temp-dir={sandbox.ray}"]
        # Ray must not hold the pipe, whose end means that the parent is gone.
        assert (sandbox.notes / "input").read_text() == "''"


@pytest.mark.parametrize("option", ["--leave-nothing", "--leave-a-tree"])
def test_a_failed_start_is_reported_and_leaves_nothing(sandbox: Sandbox, option: str) -> None:
    with sandbox.supervisor("--fail", option) as child:
        assert read_line(child) == "failed"
        assert [read_line(child) for _ in range(2)] == ["text on stdout", "text on stderr"]
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(timeout=TIMEOUT_S) == 3
        assert not sandbox.processes()
    assert not sandbox.state.exists()


@pytest.mark.parametrize("end", ["close", "kill"])
def test_nothing_is_left_after_the_parent_ends_while_ray_starts(sandbox: Sandbox, end: str) -> None:
    end_while_starting(sandbox, end)


@pytest.mark.timing
def test_it_takes_two_seconds_at_most(tmp_path: Path) -> None:
    # The shortest of three: the machine may pause one of the processes for longer.
    ends = (end_while_starting(make_sandbox(tmp_path / str(n)), "kill") for n in range(3))
    assert any(seconds < 2 for seconds in ends)


def end_while_starting(sandbox: Sandbox, end: str) -> float:
    """End the supervisor's parent while Ray starts; the seconds until no process is left."""
    command = [sys.executable, "-c", PARENT, str(sandbox.state), str(sandbox.ray)]
    command += ["--hang", "--leave-ignoring"]
    if end == "close":
        command = sandbox.command("--hang", "--leave-ignoring")
    with sandbox.child(command) as child:
        wait_for(sandbox.notes / "hangs")
        if end == "close":
            assert child.stdin is not None
            child.stdin.close()
        else:
            os.kill(child.pid, signal.SIGKILL)
        start = time.monotonic()
        sandbox.wait_until_none_is_left()
        elapsed_s = time.monotonic() - start
    assert not sandbox.state.exists()
    return elapsed_s


def test_an_agent_that_ends_early_is_reported_while_ray_still_waits(sandbox: Sandbox) -> None:
    with sandbox.supervisor("--agent-ends", "--leave-nothing") as child:
        assert read_line(child) == "failed"
        report = [read_line(child) for _ in range(3)]
        assert report[1] == "ModuleNotFoundError: No module named 'aiohttp'"
        assert report[2].endswith("one Ray agent failed, agent_name = dashboard_agent.")
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(timeout=TIMEOUT_S) == 1
        assert not sandbox.processes()


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not file.exists():
        assert time.monotonic() < deadline, f"{file} does not appear"
        time.sleep(0.02)


def test_the_supervisor_imports_only_the_standard_library() -> None:
    code = (
        "import sys; before = set(sys.modules); import serving.cluster.supervisor;"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before};"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "['serving']"


def test_descendants_of_a_command_whose_name_looks_like_stat_are_found(tmp_path: Path) -> None:
    # The command's name in /proc/PID/stat may contain spaces and parentheses.
    odd = tmp_path / "a) R 1 (b"
    odd.symlink_to("/bin/sh")
    with subprocess.Popen([odd, "-c", "sleep 600 & wait"]) as shell:
        try:
            deadline = time.monotonic() + TIMEOUT_S
            while not descendants(shell.pid):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert parents()[shell.pid] == os.getpid()
            below = descendants(shell.pid)
            assert len(below) == 1
            assert set(descendants(os.getpid())) >= {shell.pid, *below}
        finally:
            for pid in (*descendants(shell.pid), shell.pid):
                os.kill(pid, signal.SIGKILL)
