"""The end of a group of processes that a test starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from support.gate_server import wait_until
from support.processes import process_group

CHILD = "import subprocess, sys; print(subprocess.Popen(['sleep', '600']).pid, flush=True)"
PROGRAM = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from support.processes import end_group_with_parent
end_group_with_parent()
exec({CHILD!r})
time.sleep(600)
"""
PARENT = f"""
import subprocess, sys
program = subprocess.Popen(
    [sys.executable, "-c", {PROGRAM!r}], stdin=subprocess.PIPE, start_new_session=True
)
program.wait()
"""


def child_of(process: subprocess.Popen[bytes]) -> psutil.Process:
    assert process.stdout is not None
    return psutil.Process(int(process.stdout.readline()))


def has_ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("code", [CHILD, PROGRAM])
def test_children_end_with_the_block(code: str) -> None:
    """Those of a program that has ended itself, and those of one that runs."""
    with process_group([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        child = child_of(process)
        assert not has_ended(child)
    wait_until(lambda: has_ended(child))


def test_children_end_if_the_process_that_started_the_group_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        child = child_of(parent)
        assert not has_ended(child)
        parent.kill()
        wait_until(lambda: has_ended(child))
