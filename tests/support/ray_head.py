"""A Ray cluster as an administrator starts one, without this project."""

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
    """The addresses of its control service, of Ray Client and of its dashboard."""

    address: str
    client: str
    dashboard: str


@contextmanager
def plain_head(folder: Path, **variables: str) -> Iterator[Head]:
    """Run `ray start --head` in this folder with these variables; end it by process id."""
    port, client, dashboard = free_port(), free_port(), free_port()
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", f"--port={port}"]
    options = ["--num-cpus=8", "--dashboard-agent-listen-port=0", "--disable-usage-stats"]
    ports = [f"--ray-client-server-port={client}", f"--dashboard-port={dashboard}"]
    mark = uuid.uuid4().hex
    head = subprocess.Popen(
        [*ray, *options, *ports, "--node-ip-address=127.0.0.1", "--block"],
        cwd=folder,
        env={**os.environ, "RAY_TMPDIR": "/tmp", **variables, MARK: mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert head.stdout is not None
    for line in head.stdout:
        if "Ray runtime started" in line:
            break
    try:
        yield Head(
            f"127.0.0.1:{port}", f"ray://127.0.0.1:{client}", f"http://127.0.0.1:{dashboard}"
        )
    finally:
        head.terminate()
        psutil.wait_procs([psutil.Process(head.pid)] if psutil.pid_exists(head.pid) else [], 20)
        for process in marked(mark):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait(60)


def marked(mark: str) -> list[psutil.Process]:
    """Every process of the cluster, including orphans, and no other process.

    They inherit the variable; their names are those of any other cluster on this machine.
    """
    processes = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark:
                processes.append(process)
    return processes
