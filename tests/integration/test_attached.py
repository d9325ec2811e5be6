"""A cluster that was started elsewhere: it receives our packages and loses only our application."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.ray_head import Head, plain_head

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(700)]

USER = """
import asyncio, json, ray, time
import workbench as wb
from serving.errors import ClusterError

spec = wb.ServiceSpec(port=0, model=wb.ModelSpec(max_model_len=256))
endpoint = wb.open_endpoint(spec)
lines = []
wb.open_endpoint(spec, progress=lines.append)
answer = endpoint.client.completions.create(model=endpoint.model_id, prompt="a", max_tokens=4)

@ray.remote(num_cpus=0)
def package_files():
    import serving, workbench
    return [serving.__file__, workbench.__file__]

async def load():
    spec = wb.LoadSpec(arrivals=wb.ClosedLoop(max_concurrency=2), count=4,
                      prompts=wb.RandomPrompts(input=8, output=4))
    return (await wb.start_load(endpoint, spec, progress=None)).summary().completed

samples = []
def counts():
    return {getattr(sample, "output_tokens", None) for sample in samples} - {None}
with wb.Telemetry(endpoint, wb.client.start_clock(), samples.append):
    began = time.monotonic()
    while len(counts()) < 5 and time.monotonic() - began < 25:
        endpoint.client.completions.create(model=endpoint.model_id, prompt="a", max_tokens=4)
        time.sleep(1)

result = {"counts": sorted(counts()),
         "again": next(line.split(": ")[-1] for line in lines if "already" in line),
         "deployments": {n: r.running for n, r in endpoint.status().deployments.items()},
         "tokens": answer.usage.completion_tokens, "files": ray.get(package_files.remote()),
         "completed": asyncio.run(load())}
endpoint.delete()
from ray import serve
result["applications"] = list(serve.status().applications)
print("RESULT " + json.dumps(result), flush=True)
"""


OTHER_VERSION = """
import json, ray
import workbench as wb

ray.__version__ = "2.59.9"
try:
    wb.open_endpoint(wb.ServiceSpec(port=0))
except wb.WorkbenchError as error:
    result = {"error": type(error).__name__, "message": str(error)}
print("RESULT " + json.dumps(result), flush=True)
"""


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A plain `ray start --head`, as an administrator runs it."""
    with plain_head(tmp_path_factory.mktemp("head")) as started:
        yield started


@pytest.mark.parametrize("by", ["address", "client"])
def test_our_packages_are_sent_and_only_our_application_is_deleted(
    head: Head, tmp_path: Path, by: str
) -> None:
    # Not run in the repository: Ray gives workers of the same host the driver's folder.
    result = run_user(USER, tmp_path, RAY_ADDRESS=getattr(head, by))
    assert result["tokens"] == 4
    assert result["completed"] == 4
    assert result["again"] == "already running as specified"
    assert result["deployments"] == {"tiny-llama-glossary": 1, "router": 1}
    # With Ray's default interval of 10 s the counter would change at most three times in 25 s.
    assert len(result["counts"]) >= 5, result["counts"]
    assert all("py_modules_files" in file for file in result["files"]), result["files"]
    assert result["applications"] == []
    status = [sys.executable, "-m", "ray.scripts.scripts", "status", f"--address={head.address}"]
    alive = subprocess.run(
        status, capture_output=True, text=True, env={**os.environ, "RAY_AUTH_MODE": "token"}
    )
    assert "Healthy" in alive.stdout or "Active" in alive.stdout, alive.stdout + alive.stderr


@pytest.mark.parametrize("by", ["address", "client"])
def test_another_version_of_ray_is_reported_in_one_line(
    head: Head, tmp_path: Path, by: str
) -> None:
    result = run_user(OTHER_VERSION, tmp_path, RAY_ADDRESS=getattr(head, by))
    assert result["error"] == "ClusterError"
    assert "the cluster runs Ray 2.60.0 on Python" in result["message"]
    assert "this process Ray 2.59.9 on Python" in result["message"]
    assert "\n" not in result["message"]


def run_user(program: str, folder: Path, **variables: str) -> dict[str, Any]:
    """The result that a user's program prints, run in another folder."""
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=500,
    )
    lines = [line for line in ran.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, ran.stdout[-2000:] + ran.stderr[-3000:]
    result: dict[str, Any] = json.loads(lines[0].removeprefix("RESULT "))
    return result
