"""The supervisor for real, around a stand-in for `ray start` that leaves wild processes behind.

The truth is `/proc`, read without the supervisor's own functions.
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

PATIENCE_S = 20

# A stand-in for Ray: it writes down its arguments, leaves a tree of processes and ends as told.
STAND_IN = """
import os, signal, subprocess, sys, time
from pathlib import Path

folder = Path(os.environ["STAND_IN"])
(folder / "arguments").write_text("\\n".join(sys.argv[1:]))
(folder / "input").write_text(repr(sys.stdin.read()))
print("words on stdout", flush=True)
print("words on stderr", file=sys.stderr, flush=True)
SLEEP = "import time; time.sleep(600)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', '{SLEEP}'])"
DEAF = (
    "import pathlib, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    f"pathlib.Path({str(folder / 'is-deaf')!r}).touch(); {SLEEP}"
)


def leave(name, code):
    # A daemon: a session of its own, and no parent but the one that adopts it.
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            child = subprocess.Popen([sys.executable, "-c", code])
            (folder / name).write_text(f"{os.getpid()} {child.pid}")
            if name != "orphan":
                child.wait()
        os._exit(0)


leaving = [] if "--leave-nothing" in sys.argv else ["orphan", "parent"]
leaving += ["deaf"] if "--leave-deaf" in sys.argv else []
for name in leaving:
    leave(name, {"orphan": SLEEP, "parent": PARENT, "deaf": DEAF}[name])
wanted = leaving + (["is-deaf"] if "deaf" in leaving else [])
while not all((folder / name).exists() for name in wanted):
    time.sleep(0.01)
sys.exit(3 if "--fail" in sys.argv else 0)
"""

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
class Stage:
    """Where one test plays: the supervisor's folder, and what the stand-in wrote down."""

    state: Path
    notes: Path
    env: dict[str, str]

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "serving.cluster.supervisor", str(self.state), *arguments]

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
                child.wait(timeout=PATIENCE_S)
            finally:
                self.clean_up(child)

    def clean_up(self, child: subprocess.Popen[str]) -> None:
        for pid in self.everyone():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert child.stdout is not None
        child.stdout.close()

    def tree(self) -> list[int]:
        """Every process that the stand-in left, and those below."""
        noted = [self.notes / name for name in ("orphan", "parent", "deaf")]
        text = " ".join(note.read_text() for note in noted if note.exists())
        mine = str(self.notes).encode()
        return sorted({int(pid) for pid in text.split() if mine in environ(int(pid))})

    def everyone(self) -> list[int]:
        """Every process alive that inherited the stage's environment."""
        mine = str(self.notes).encode()
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        return [pid for pid in pids if mine in environ(pid)]

    def wait_until_all_are_gone(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while left := self.everyone():
            assert time.monotonic() < deadline, f"still there: {left}"
            time.sleep(0.02)


def environ(pid: int) -> bytes:
    """The environment a process was started with; empty once it has ended."""
    try:
        return (Path("/proc") / str(pid) / "environ").read_bytes()
    except OSError:
        return b""


def said(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    package = tmp_path / "stand-in" / "ray" / "scripts"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "scripts.py").write_text(STAND_IN)
    state, notes = tmp_path / "state", tmp_path / "notes"
    state.mkdir()
    notes.mkdir()
    path = os.pathsep.join([str(tmp_path / "stand-in"), str(ROOT)])
    return Stage(state, notes, os.environ | {"PYTHONPATH": path, "STAND_IN": str(notes)})


def test_closing_the_pipe_ends_every_process_and_removes_the_folder(stage: Stage) -> None:
    with stage.supervisor("--leave-deaf") as child:
        assert said(child) == "started"
        assert len(stage.tree()) == 5, "two daemons with a child each, and an orphan"
        assert stage.state.exists()
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(timeout=PATIENCE_S) == 0
        # All ended before the supervisor did.
        assert not stage.everyone()
    assert not stage.state.exists()


def test_the_death_of_the_parent_ends_every_process(stage: Stage) -> None:
    with stage.child([sys.executable, "-c", PARENT, str(stage.state)]) as parent:
        supervisor, word = said(parent).split()
        assert word == "started"
        assert int(supervisor) in stage.everyone()
        assert len(stage.tree()) == 3
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait(timeout=PATIENCE_S)
        stage.wait_until_all_are_gone()
    assert not stage.state.exists()


def test_the_end_of_the_supervisor_itself_ends_every_process(stage: Stage) -> None:
    with stage.supervisor() as child:
        assert said(child) == "started"
        deadline = time.monotonic() + PATIENCE_S
        while child.poll() is None:  # impatient: it is told again while it ends the others
            os.kill(child.pid, signal.SIGTERM)
            time.sleep(0.05)
            assert time.monotonic() < deadline
        assert not stage.everyone()
    assert not stage.state.exists()


def test_an_interrupt_of_the_notebook_is_not_for_the_cluster(stage: Stage) -> None:
    with stage.supervisor() as child:
        assert said(child) == "started"
        before = stage.everyone()
        for _ in range(3):
            os.kill(child.pid, signal.SIGINT)
        blocked = signals(child.pid, "SigIgn")
        assert blocked & 1 << signal.SIGINT - 1
        assert child.poll() is None
        assert stage.everyone() == before


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="a kernel without autogroups")
def test_its_session_gives_way_to_others(stage: Stage) -> None:
    with stage.supervisor() as child:
        assert said(child) == "started"
        group = (Path("/proc") / str(child.pid) / "autogroup").read_text()
        assert group.split()[-2:] == ["nice", "15"]


def signals(pid: int, kind: str) -> int:
    lines = (Path("/proc") / str(pid) / "status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(kind)).split()[1], 16)


def test_ray_is_started_as_a_head_with_the_arguments_given(stage: Stage) -> None:
    with stage.supervisor("--leave-nothing", "--port=1234", '--system-config={"a b": 1}') as child:
        assert said(child) == "started"
        arguments = (stage.notes / "arguments").read_text().split("\n")
        expected = ["--leave-nothing", "--port=1234", '--system-config={"a b": 1}']
        assert arguments == ["start", "--head", *expected]
        # Ray must not hold the pipe whose end means that the parent is gone.
        assert (stage.notes / "input").read_text() == "''"
        log = (stage.state / "ray-start.log").read_text()
        assert log.splitlines() == ["words on stdout", "words on stderr"]


@pytest.mark.parametrize("left", ["--leave-nothing", "--leave-a-tree"])
def test_a_start_that_fails_says_so_and_leaves_nothing(stage: Stage, left: str) -> None:
    with stage.supervisor("--fail", left) as child:
        assert said(child) == "failed"
        # Whoever asked reads the last words before it closes the pipe.
        time.sleep(0.2)
        assert "words on stderr" in (stage.state / "ray-start.log").read_text()
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(timeout=PATIENCE_S) == 3
        assert not stage.everyone()
    assert not stage.state.exists()


def test_the_supervisor_imports_nothing_outside_the_standard_library() -> None:
    ask = (
        "import sys; before = set(sys.modules); import serving.cluster.supervisor;"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before};"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    told = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "['serving']"


def test_descendants_are_found_below_names_that_look_like_stat(tmp_path: Path) -> None:
    # The command's name in /proc/PID/stat may hold spaces and parentheses.
    odd = tmp_path / "a) R 1 (b"
    odd.symlink_to("/bin/sh")
    with subprocess.Popen([odd, "-c", "sleep 600 & wait"]) as shell:
        try:
            deadline = time.monotonic() + PATIENCE_S
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
