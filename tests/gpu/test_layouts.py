"""A mixture-of-experts model in every parallel layout of vLLM, on two NVIDIA GPUs."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from ray._private.worker import global_worker
from support.gpu_memory import used_gib, wait_until_freed
from support.paths import BENCHMARKS

from serving.sizing.checks import architecture_of, data_types_of, layout_of
from serving.sizing.memory import GIB, weight_bytes
from workbench import ModelSpec, ScalingSpec, ServiceSpec, deploy

sys.path.insert(0, str(BENCHMARKS))
from _shape import SMALL_MOE, write_shape

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.engine,
    pytest.mark.timeout(600),
    pytest.mark.skipif(len(used_gib()) < 2, reason="needs two NVIDIA GPUs"),
]

LAYOUTS: dict[str, dict[str, Any]] = {
    "data and expert parallel": {"data_parallel_size": 2, "expert_parallel": True},
    "data parallel": {"data_parallel_size": 2},
    "tensor and expert parallel": {"tensor_parallel_size": 2, "expert_parallel": True},
    "tensor parallel": {"tensor_parallel_size": 2},
    "pipeline parallel": {"pipeline_parallel_size": 2},
}
CACHE_GIB = 1
LOADED = re.compile(r"Model loading took ([0-9.]+) GiB")


@pytest.fixture(scope="module")
def shape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shape(tmp_path_factory.mktemp("shape") / "small-moe", SMALL_MOE)


def service(shape: Path, layout: dict[str, Any]) -> ServiceSpec:
    """Return a service without CUDA graphs and with a small cache, so that weights dominate."""
    model = ModelSpec(
        source=str(shape),
        accelerator="gpu",
        max_model_len=1024,
        engine_kwargs={
            "load_format": "dummy",
            "enforce_eager": True,
            "kv_cache_memory_bytes": CACHE_GIB * GIB,
        },
        scaling=ScalingSpec(min_replicas=1, max_replicas=1),
        **layout,
    )
    return ServiceSpec(name="layouts", port=0, model=model)


def weights_gib(spec: ServiceSpec) -> float:
    """Return the GiB of weights on each GPU, as `serving.sizing` computes them."""
    model = spec.model
    architecture = architecture_of(model)
    assert architecture is not None
    return weight_bytes(architecture, layout_of(model), data_types_of(model)) / GIB


def loaded_gib() -> set[float]:
    """Return the GiB of weights that vLLM logged on the workers of this cluster."""
    logs = Path(global_worker.node.get_logs_dir_path())
    texts = (path.read_text(errors="replace") for path in logs.glob("worker-*"))
    return {float(gib) for text in texts for gib in LOADED.findall(text)}


def measure(spec: ServiceSpec, workers: int) -> tuple[list[float], set[float]]:
    """Deploy, let every replica answer, and return the GiB used per GPU and the logged weights."""
    before = used_gib()
    with deploy(spec) as endpoint:
        assert endpoint.status().deployments[endpoint.deployment].running == workers
        for _ in range(8):
            stream = endpoint.client.completions.create(
                model=endpoint.model_id,
                prompt="Goodput is",
                max_tokens=24,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"ignore_eos": True},
            )
            usage = [chunk.usage for chunk in stream if chunk.usage]
            assert usage[-1].completion_tokens == 24
        used = [now - then for now, then in zip(used_gib(), before, strict=True)]
        loaded = loaded_gib()
    wait_until_freed(before)
    return used, loaded


@pytest.mark.parametrize("name", LAYOUTS)
def test_two_gpus_share_the_weights(name: str, shape: Path, record_property: Any) -> None:
    spec = service(shape, LAYOUTS[name])
    used, loaded = measure(spec, workers=LAYOUTS[name].get("data_parallel_size", 1))
    whole, computed = weights_gib(service(shape, {})), weights_gib(spec)
    record_property("gib_held_per_card", [round(gib, 2) for gib in used])
    record_property("gib_of_weights_per_worker", sorted(loaded))
    record_property("gib_of_weights_computed", round(computed, 2))
    record_property("gib_of_the_whole_model", round(whole, 2))
    assert loaded
    assert all(gib == pytest.approx(computed, abs=0.1) for gib in loaded)
    # The driver agrees: each GPU uses less memory than the whole model needs.
    assert all(computed + CACHE_GIB < gib < whole for gib in used)
