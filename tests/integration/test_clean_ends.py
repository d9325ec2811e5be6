"""However the process that started a cluster ends, no process of the cluster is left."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from support.processes import assert_gone, names

from serving.cluster.ports import free_port
from serving.cluster.supervisor import descendants

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

DEPLOY = """
import sys
import workbench as wb
spec = wb.ServiceSpec(port=int(sys.argv[1]), model=wb.ModelSpec(max_model_len=256))
with wb.deploy(spec) as endpoint:
    endpoint.client.completions.create(model=endpoint.model_id, prompt="a", max_tokens=2)
    print("SERVING", flush=True)
    sys.stdin.read()
"""
SESSION = re.compile(rb"--session[-_]dir=([^ \0]+)")
TOKEN = f"hf_{secrets.token_hex(20)}"  # Random, so that no bytecode contains it.


@contextmanager
def deploying(port: int) -> Iterator[subprocess.Popen[str]]:
    """A process that deploys as a kernel does, with a hub token in its environment."""
    child = subprocess.Popen(
        [sys.executable, "-c", DEPLOY, str(port)],
        env={**os.environ, "HF_TOKEN": TOKEN, "PYTHONFAULTHANDLER": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.communicate()


def read_until(child: subprocess.Popen[str], word: str) -> str:
    """The output up to the line that contains the word."""
    assert child.stdout is not None
    output = ""
    for line in child.stdout:
        output += line
        if word in line:
            return output
    raise AssertionError(f"the child ended without {word!r}:\n{output}")


def exit_status(child: subprocess.Popen[str], within_s: float) -> int:
    """The exit status; fails with the stack of every thread if the child does not end."""
    try:
        return child.wait(timeout=within_s)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGABRT)  # faulthandler prints the stacks.
        raise AssertionError(f"it did not end:\n{child.communicate()[0][-6000:]}") from None


def test_a_killed_kernel_leaves_nothing_and_its_hub_token_is_in_no_record() -> None:
    port = free_port()
    with deploying(port) as child:
        read_until(child, "SERVING")
        pids = descendants(child.pid)
        running = " ".join(names(pids).values())
        for part in ("raylet", "gcs_server", "VLLM::EngineCor", "VLLM::Worker", "haproxy"):
            assert part in running
        commands = []
        for pid in names(pids):
            with suppress(OSError):  # It has ended.
                commands.append((Path("/proc") / str(pid) / "cmdline").read_bytes())
        sessions = {path for command in commands for path in SESSION.findall(command)}
        assert len(sessions) == 1
        grep = ["grep", "-rlaF", TOKEN, sessions.pop().decode()]
        assert subprocess.run(grep, capture_output=True, text=True).stdout == ""
        assert not any(TOKEN.encode() in command for command in commands)
        # The token is only in memory, where the hub's library reads it.
        grep = ["grep", "-rlF", "--exclude-dir=.venv", TOKEN, "/tmp"]
        assert subprocess.run(grep, capture_output=True, check=False).stdout == b""
        os.kill(child.pid, signal.SIGKILL)
        assert_gone(pids, port)


def test_an_interrupt_while_deploying_leaves_nothing() -> None:
    port = free_port()
    with deploying(port) as child:
        read_until(child, "1 starting")
        pids = descendants(child.pid)
        os.kill(child.pid, signal.SIGINT)
        assert exit_status(child, within_s=90) != 0
        assert_gone(pids, port)


AGAIN = """
from ray import serve
from serving.cluster import connection
from serving.deploy import status
for _ in range(2):
    assert connection.connect().ours
    assert status.details() == {"applications": {}}
    serve.start()
    assert status.details()["controller_info"]["actor_id"]
    connection.disconnect()
print("TWICE")
"""


def test_a_process_can_start_a_second_cluster() -> None:
    child = subprocess.run([sys.executable, "-c", AGAIN], capture_output=True, text=True)
    assert "TWICE" in child.stdout, child.stderr[-3000:]
    assert child.returncode == 0, child.stderr[-3000:]
