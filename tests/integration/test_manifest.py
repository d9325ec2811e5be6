"""A manifest for `serve deploy`, deployed on a cluster that was started without this project."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.paths import ROOT
from support.ray_head import Head, plain_head

from serving.cluster.ports import free_port
from serving.deploy.manifest import write
from serving.spec.model import ModelSpec
from serving.spec.service import ServiceSpec
from serving.spec.tenants import key_hash

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]
KEY = "sk-a-key-of-enough-length"


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    """A cluster whose nodes can import our packages, as the image's can."""
    with plain_head(tmp_path, PYTHONPATH=str(ROOT)) as started:
        yield started


def test_serve_deploy_starts_the_service(head: Head, tmp_path: Path) -> None:
    port = free_port()
    spec = ServiceSpec(name="from-file", port=port, model=ModelSpec(max_model_len=256))
    (tmp_path / "config.yaml").write_text(write("serve", spec, "", {"key_hashes": [key_hash(KEY)]}))
    serve = [sys.executable, "-m", "ray.serve.scripts", "deploy", "config.yaml"]
    ran = subprocess.run(
        [*serve, "--address", head.dashboard],
        cwd=tmp_path,
        env=os.environ | {"RAY_AUTH_MODE": "token"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    url, headers = f"http://127.0.0.1:{port}/v1", {"Authorization": f"Bearer {KEY}"}
    body = {"model": "tiny-llama-glossary", "prompt": "a", "max_tokens": 4, "ignore_eos": True}
    answer = post_until_ready(f"{url}/completions", headers, body)
    assert answer["usage"]["completion_tokens"] == 4
    assert httpx.get(f"{url}/models", timeout=60).status_code == 401


def post_until_ready(url: str, headers: dict[str, str], body: dict[str, Any]) -> dict[str, Any]:
    last: Any = None
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        try:
            last = httpx.post(url, headers=headers, json=body, timeout=60)
            if last.status_code == 200:
                answer: dict[str, Any] = last.json()
                return answer
        except httpx.HTTPError as error:
            last = error
        time.sleep(2)
    raise AssertionError(f"no answer within 300 s: {last!r}")
