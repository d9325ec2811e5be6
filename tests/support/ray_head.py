"""A Ray cluster as an administrator would start one, by hand and not by this project."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from serving.cluster.ports import free_port

MARK = "LLM_WORKBENCH_TEST_HEAD"


@dataclass(frozen=True)
class Head:
    """Where it answers: its control service, Ray Client, and its dashboard."""

    address: str
    client: str
    dashboard: str


@contextmanager
def plain_head(folder: Path, **variables: str) -> Iterator[Head]:
    """`ray start --head` in this folder with these variables, ended by process id."""
    port, client, dashboard = free_port(), free_port(), free_port()
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", f"--port={port}"]
    quiet = ["--num-cpus=8", "--dashboard-agent-listen-port=0", "--disable-usage-stats"]
    ports = [f"--ray-client-server-port={client}", f"--dashboard-port={dashboard}"]
    mark = uuid.uuid4().hex
    keeper = subprocess.Popen(
        [*ray, *quiet, *ports, "--node-ip-address=127.0.0.1", "--block"],
        cwd=folder,
        env={**os.environ, "RAY_TMPDIR": "/tmp", **variables, MARK: mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert keeper.stdout is not None
    for line in keeper.stdout:
        if "Ray runtime started" in line:
            break
    try:
        yield Head(
            f"127.0.0.1:{port}", f"ray://127.0.0.1:{client}", f"http://127.0.0.1:{dashboard}"
        )
    finally:
        keeper.terminate()
        psutil.wait_procs([psutil.Process(keeper.pid)] if psutil.pid_exists(keeper.pid) else [], 20)
        for process in marked(mark):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        keeper.wait(20)


def marked(mark: str) -> list[psutil.Process]:
    """Every process of the cluster, those that have lost their parent too, and no other's.

    They inherit the variable; names and command lines look like those of any other cluster here.
    """
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark:
                found.append(process)
    return found
