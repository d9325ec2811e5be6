"""Deploy, stream and scale on one NVIDIA GPU, half of it per replica, and free all memory."""

from __future__ import annotations

import time
from typing import Any

import pytest
from support.gpu_memory import used_gib, wait_until_freed

from workbench import ModelSpec, ScalingSpec, ServiceSpec, deploy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.engine,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not used_gib(), reason="needs an NVIDIA GPU"),
]


def wait_until(done: Any, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.5)


def half_a_gpu(replicas: int) -> ServiceSpec:
    scaling = ScalingSpec(min_replicas=replicas, max_replicas=2)
    model = ModelSpec(accelerator="gpu", num_gpus=0.5, max_model_len=1024, scaling=scaling)
    return ServiceSpec(name="halves", port=0, model=model)


def test_deploy_stream_scale_and_free_the_memory() -> None:
    before = used_gib()
    with deploy(half_a_gpu(1)) as endpoint:
        stream = endpoint.client.chat.completions.create(
            model=endpoint.model_id,
            messages=[{"role": "user", "content": "What is continuous batching?"}],
            temperature=0,
            max_tokens=60,
            stream=True,
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert "batch" in text
        with_one = sum(used_gib())
        assert with_one > sum(before) + 1
        deploy(half_a_gpu(2))
        wait_until(lambda: endpoint.status().deployments[endpoint.deployment].running == 2, 300)
        assert sum(used_gib()) > with_one + 1
        for _ in range(8):
            assert endpoint.client.completions.create(
                model=endpoint.model_id, prompt="Goodput is", max_tokens=8
            ).choices
    wait_until_freed(before)
