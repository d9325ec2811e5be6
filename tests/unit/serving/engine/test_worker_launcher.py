"""Workers of Ray are forked from a server of their node, or started as Ray would start them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

SUPPORT = Path(__file__).parents[3] / "support"
ROOT = SUPPORT.parents[1]
Launch = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Path]:
    """The folder of a node, whose servers end with the test."""
    for name in ("sockets", "logs"):
        (tmp_path / name).mkdir()
    # The path of a socket has at most 107 bytes.
    folder = Path(f"/tmp/launcher-{os.getpid()}")
    folder.symlink_to(tmp_path)
    yield folder
    folder.unlink()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if "serve" in process.cmdline() and process.environ().get("NODE") == str(folder):
                process.kill()


@pytest.fixture
def launch(node: Path) -> Launch:
    """Return a function that starts a launcher with some variables."""

    def start(*arguments: str, **variables: str) -> subprocess.Popen[str]:
        path = os.pathsep.join(map(str, (SUPPORT, ROOT)))
        programs = [str(SUPPORT / name) for name in ("launcher_program.py", "launched_worker.py")]
        return subprocess.Popen(
            [sys.executable, *programs, *arguments],
            env=os.environ | {"PYTHONPATH": path, "NODE": str(node)} | variables,
            stdout=subprocess.PIPE,
            text=True,
        )

    return start


def ended(launcher: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for a launcher; return what its worker printed."""
    output, _ = launcher.communicate(timeout=100)
    assert launcher.returncode == 3, "the status of the worker"
    found: dict[str, Any] = json.loads(output)
    return found


def name(node: Path) -> str:
    return f"--raylet-name={node}/sockets/raylet"


def test_workers_are_forked_from_one_server_and_look_like_programs(
    launch: Launch, node: Path
) -> None:
    at_once = [launch(name(node), "x y", VALUE="1", RAY_JOB_ID=job) for job in ("01", "02")]
    workers = [ended(launcher) for launcher in at_once]
    workers.append(ended(launch(name(node), "x y", VALUE="1", RAY_JOB_ID="03")))
    servers = {worker["preloaded_by"] for worker in workers}
    assert len(servers) == 1
    assert servers.isdisjoint({None, *(worker["pid"] for worker in workers)})
    assert [worker["variables"]["RAY_JOB_ID"] for worker in workers] == ["01", "02", "03"]
    for worker in workers:
        assert worker["arguments"] == [name(node), "x y"]
        assert worker["start_method"] == "fork"
        assert worker["folder"] == os.getcwd()
    (socket,) = (node / "sockets").iterdir()
    assert socket.stat().st_mode & 0o077 == 0, "only this user can start a process"


def test_a_worker_with_other_variables_has_another_server(launch: Launch, node: Path) -> None:
    first, second = (ended(launch(name(node), VALUE=value)) for value in ("1", "2"))
    assert first["preloaded_by"] != second["preloaded_by"]
    assert (first["variables"]["VALUE"], second["variables"]["VALUE"]) == ("1", "2")


def test_a_token_reaches_the_worker_and_not_the_server(launch: Launch, node: Path) -> None:
    worker = ended(launch(name(node), HF_TOKEN="hf_secret"))
    assert worker["variables"]["HF_TOKEN"] == "hf_secret"
    assert "HF_TOKEN" not in psutil.Process(worker["preloaded_by"]).environ()
    assert ended(launch(name(node)))["preloaded_by"] == worker["preloaded_by"]


def test_a_server_that_was_killed_is_replaced(launch: Launch, node: Path) -> None:
    first = ended(launch(name(node)))
    os.kill(first["preloaded_by"], signal.SIGKILL)
    psutil.wait_procs([psutil.Process(first["preloaded_by"])], timeout=30)
    second = ended(launch(name(node)))
    assert second["preloaded_by"] not in (None, first["preloaded_by"])


def test_a_worker_ends_with_its_launcher(launch: Launch, node: Path) -> None:
    launcher = launch(name(node), "wait")
    assert launcher.stdout is not None
    worker = psutil.Process(json.loads(launcher.stdout.readline())["pid"])
    launcher.kill()
    launcher.wait()
    launcher.stdout.close()
    gone, _ = psutil.wait_procs([worker], timeout=30)
    assert gone


@pytest.mark.parametrize("arguments", [(), ("--raylet-name=/nowhere/sockets/raylet",)])
def test_without_a_server_the_launcher_becomes_the_worker(
    launch: Launch, arguments: tuple[str, ...]
) -> None:
    launcher = launch(*arguments)
    worker = ended(launcher)
    assert worker["preloaded_by"] is None
    assert worker["pid"] == launcher.pid
