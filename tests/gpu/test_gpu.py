"""On a host with an NVIDIA GPU: deploy, stream, scale on half a card each, and give it all back."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from typing import Any

import pytest

from workbench import ModelSpec, ScalingSpec, ServiceSpec, deploy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.engine,
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="no NVIDIA GPU here"),
]


def used_mib() -> int:
    """Memory in use on all GPUs that are ours, in MiB, by the driver's own account."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        query += ["--id", visible]
    return sum(map(int, subprocess.run(query, capture_output=True, text=True).stdout.split()))


def until(holds: Any, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.5)


def half_a_card(replicas: int) -> ServiceSpec:
    scaling = ScalingSpec(min_replicas=replicas, max_replicas=2)
    model = ModelSpec(accelerator="gpu", num_gpus=0.5, max_model_len=1024, scaling=scaling)
    return ServiceSpec(name="halves", port=0, model=model)


def test_deploy_stream_scale_and_free_the_memory() -> None:
    before = used_mib()
    with deploy(half_a_card(1)) as endpoint:
        stream = endpoint.client.chat.completions.create(
            model=endpoint.model_id,
            messages=[{"role": "user", "content": "What is continuous batching?"}],
            temperature=0,
            max_tokens=60,
            stream=True,
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert "batch" in text
        one = used_mib()
        assert one > before + 1000
        deploy(half_a_card(2))
        until(lambda: endpoint.status().deployments[endpoint.deployment].running == 2, 300)
        assert used_mib() > one + 1000
        for _ in range(8):
            assert endpoint.client.completions.create(
                model=endpoint.model_id, prompt="Goodput is", max_tokens=8
            ).choices
    until(lambda: used_mib() <= before + 64, 30)
