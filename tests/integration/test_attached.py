"""A cluster that somebody else started: it gets our packages, and loses only our application."""

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

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(400)]

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
def homes():
    import serving, workbench
    return [serving.__file__, workbench.__file__]

async def load():
    few = wb.LoadSpec(arrivals=wb.ClosedLoop(max_concurrency=2), count=4,
                      prompts=wb.RandomPrompts(input=8, output=4))
    return (await wb.start_load(endpoint, few, progress=None)).summary().completed

seen = []
with wb.Telemetry(endpoint, wb.client.start_clock(), seen.append):
    for _ in range(8):
        endpoint.client.completions.create(model=endpoint.model_id, prompt="a", max_tokens=4)
        time.sleep(1)
told = {getattr(sample, "output_tokens", None) for sample in seen} - {None}

found = {"counts": sorted(told),
         "again": next(line.split(": ")[-1] for line in lines if "already" in line),
         "deployments": {n: r.running for n, r in endpoint.status().deployments.items()},
         "tokens": answer.usage.completion_tokens, "homes": ray.get(homes.remote()),
         "completed": asyncio.run(load())}
endpoint.delete()
from ray import serve
found["applications"] = list(serve.status().applications)
print("RESULT " + json.dumps(found), flush=True)
"""


OTHER_VERSION = """
import json, ray
import workbench as wb

ray.__version__ = "2.59.9"
try:
    wb.open_endpoint(wb.ServiceSpec(port=0))
except wb.WorkbenchError as error:
    found = {"error": type(error).__name__, "said": str(error)}
print("RESULT " + json.dumps(found), flush=True)
"""


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A plain `ray start --head`, as an administrator would type it."""
    with plain_head(tmp_path_factory.mktemp("head")) as found:
        yield found


@pytest.mark.parametrize("by", ["address", "client"])
def test_our_packages_travel_and_only_our_application_goes(
    head: Head, tmp_path: Path, by: str
) -> None:
    # Not from the repository: Ray gives workers of the same host the driver's folder.
    told = run_user(USER, tmp_path, RAY_ADDRESS=getattr(head, by))
    assert told["tokens"] == 4
    assert told["completed"] == 4
    assert told["again"] == "already running as specified"
    assert told["deployments"] == {"tiny-llama-glossary": 1, "router": 1}
    # Ray's usual interval of 10 s would show the counter once or twice in 8 s.
    assert len(told["counts"]) >= 4, told["counts"]
    assert all("py_modules_files" in home for home in told["homes"]), told["homes"]
    assert told["applications"] == []
    status = [sys.executable, "-m", "ray.scripts.scripts", "status", f"--address={head.address}"]
    alive = subprocess.run(
        status, capture_output=True, text=True, env={**os.environ, "RAY_AUTH_MODE": "token"}
    )
    assert "Healthy" in alive.stdout or "Active" in alive.stdout, alive.stdout + alive.stderr


@pytest.mark.parametrize("by", ["address", "client"])
def test_another_version_of_ray_is_said_in_one_sentence(
    head: Head, tmp_path: Path, by: str
) -> None:
    told = run_user(OTHER_VERSION, tmp_path, RAY_ADDRESS=getattr(head, by))
    assert told["error"] == "ClusterError"
    assert "the cluster runs Ray 2.60.0 on Python" in told["said"]
    assert "this process Ray 2.59.9 on Python" in told["said"]
    assert "\n" not in told["said"]


def run_user(program: str, folder: Path, **variables: str) -> dict[str, Any]:
    """What a user's program, run elsewhere, prints as its result."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stdout[-2000:] + done.stderr[-3000:]
    found: dict[str, Any] = json.loads(lines[0].removeprefix("RESULT "))
    return found
