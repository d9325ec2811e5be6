"""On a host with two NVIDIA GPUs: a sparse model in every parallel layout that vLLM has for it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from ray._private.worker import global_worker
from support.gpu_memory import used_gib, wait_until_freed
from support.paths import BENCHMARKS

from serving.sizing.checks import architecture_of, layout_of, sizes_of
from serving.sizing.memory import GIB, weight_bytes
from workbench import ModelSpec, ScalingSpec, ServiceSpec, deploy

sys.path.insert(0, str(BENCHMARKS))
from _shape import SMALL_MOE, write_shape

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.engine,
    pytest.mark.timeout(600),
    pytest.mark.skipif(len(used_gib()) < 2, reason="no two NVIDIA GPUs here"),
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


def service(shape: Path, given: dict[str, Any]) -> ServiceSpec:
    """No graphs and a cache of a fixed size, so that memory is weights above all."""
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
        **given,
    )
    return ServiceSpec(name="layouts", port=0, model=model)


def weights_gib(spec: ServiceSpec) -> float:
    """Weights on each GPU, as the sizing foretells them."""
    known = architecture_of(spec.model)
    assert known is not None
    return weight_bytes(known, layout_of(spec.model), sizes_of(spec.model)) / GIB


def loaded_gib() -> set[float]:
    """What the model's weights took on each worker of this cluster, as vLLM logged it."""
    logs = Path(global_worker.node.get_logs_dir_path())
    told = (path.read_text(errors="replace") for path in logs.glob("worker-*"))
    return {float(gib) for text in told for gib in LOADED.findall(text)}


def held_by(spec: ServiceSpec, workers: int) -> tuple[list[float], set[float]]:
    """Deploy and let every replica answer; what each card holds then, and weights as logged."""
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
        held = [now - then for now, then in zip(used_gib(), before, strict=True)]
        loaded = loaded_gib()
    wait_until_freed(before)
    return held, loaded


@pytest.mark.parametrize("name", LAYOUTS)
def test_two_cards_share_the_weights(name: str, shape: Path, record_property: Any) -> None:
    spec = service(shape, LAYOUTS[name])
    held, loaded = held_by(spec, workers=LAYOUTS[name].get("data_parallel_size", 1))
    whole, foretold = weights_gib(service(shape, {})), weights_gib(spec)
    record_property("gib_held_per_card", [round(one, 2) for one in held])
    record_property("gib_of_weights_per_worker", sorted(loaded))
    record_property("gib_of_weights_foretold", round(foretold, 2))
    record_property("gib_of_the_whole_model", round(whole, 2))
    assert loaded
    assert all(one == pytest.approx(foretold, abs=0.1) for one in loaded)
    # By the driver's account, too: all that a card holds is less than the whole model.
    assert all(foretold + CACHE_GIB < one < whole for one in held)
