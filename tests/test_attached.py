"""A cluster that somebody else started: it gets our packages, and loses only our application."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from test_clean_ends import free_port

from serving.supervisor import descendants

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(400)]

USER = """
import asyncio, json, ray
import workbench as wb
from workbench.errors import ClusterError

spec = wb.ServiceSpec(port=0, model=wb.ModelSpec(max_model_len=256))
endpoint = wb.deploy(spec)
answer = endpoint.client.completions.create(model=endpoint.model_id, prompt="a", max_tokens=4)

@ray.remote(num_cpus=0)
def homes():
    import serving, workbench
    return [serving.__file__, workbench.__file__]

async def load():
    few = wb.LoadSpec(arrivals=wb.Closed(max_concurrency=2), count=4,
                      prompts=wb.RandomPrompts(input=8, output=4))
    return (await wb.start_load(endpoint, few, progress=None)).summary().completed

found = {"tokens": answer.usage.completion_tokens, "homes": ray.get(homes.remote()),
         "completed": asyncio.run(load())}
endpoint.delete()
from ray import serve
found["applications"] = list(serve.status().applications)
print("RESULT " + json.dumps(found), flush=True)
"""


@pytest.fixture
def head(tmp_path: Path) -> Iterator[str]:
    """A plain `ray start --head`, as an administrator would type it, ended by process id."""
    port = free_port()
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", f"--port={port}"]
    quiet = ["--num-cpus=8", "--dashboard-agent-listen-port=0", "--disable-usage-stats"]
    client = [f"--ray-client-server-port={free_port()}", "--node-ip-address=127.0.0.1"]
    before = set(psutil.pids())
    keeper = subprocess.Popen(
        [*ray, *quiet, *client, "--block"],
        cwd=tmp_path,
        env={**os.environ, "RAY_TMPDIR": "/tmp"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert keeper.stdout is not None
    for line in keeper.stdout:
        if "Ray runtime started" in line:
            break
    try:
        yield f"127.0.0.1:{port}"
    finally:
        ours = descendants(keeper.pid)
        keeper.terminate()
        psutil.wait_procs([psutil.Process(keeper.pid)] if psutil.pid_exists(keeper.pid) else [], 20)
        left = [psutil.Process(p) for p in {*ours, *_ray_made(before)} if psutil.pid_exists(p)]
        for process in left:
            process.kill()
        keeper.wait(20)


def _ray_made(before: set[int]) -> set[int]:
    """Processes of the cluster that have lost their parent."""
    found = set()
    for process in psutil.process_iter(["pid", "name", "cmdline"]):
        words = " ".join(process.info["cmdline"] or [])
        if process.info["pid"] not in before and ("ray" in words or "haproxy" in words):
            found.add(process.info["pid"])
    return found - {os.getpid()}


def test_our_packages_travel_and_only_our_application_goes(head: str, tmp_path: Path) -> None:
    # Not from the repository: Ray gives workers of the same host the driver's folder.
    done = subprocess.run(
        [sys.executable, "-c", USER],
        cwd=tmp_path,
        env={**os.environ, "RAY_ADDRESS": head},
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stdout[-2000:] + done.stderr[-3000:]
    found = json.loads(lines[0].removeprefix("RESULT "))
    assert found["tokens"] == 4
    assert found["completed"] == 4
    assert all("py_modules_files" in home for home in found["homes"]), found["homes"]
    assert found["applications"] == []
    status = [sys.executable, "-m", "ray.scripts.scripts", "status", f"--address={head}"]
    alive = subprocess.run(
        status, capture_output=True, text=True, env={**os.environ, "RAY_AUTH_MODE": "token"}
    )
    assert "Healthy" in alive.stdout or "Active" in alive.stdout, alive.stdout + alive.stderr
