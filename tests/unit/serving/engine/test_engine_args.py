"""From a model's specification to vLLM's arguments and its environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from serving.compat.vllm import engine_arguments
from serving.engine.engine_args import engine_kwargs, environment
from serving.spec.model import ModelSpec


class TestArguments:
    def test_an_absent_field_is_not_passed(self) -> None:
        assert "max_model_len" not in engine_kwargs(ModelSpec())
        assert engine_kwargs(ModelSpec(max_model_len=256))["max_model_len"] == 256

    def test_vllm_knows_every_argument(self) -> None:
        for model in (
            ModelSpec(max_model_len=256),
            ModelSpec(accelerator="gpu", num_gpus=0.5),
            ModelSpec(accelerator="gpu", data_parallel_size=2, expert_parallel=True),
            ModelSpec(tensor_parallel_size=2, pipeline_parallel_size=2),
        ):
            assert set(engine_kwargs(model)) <= engine_arguments()

    @pytest.mark.parametrize(("share", "memory"), [(0.5, 0.45), (0.25, 0.225), (0.1, 0.09)])
    def test_replicas_that_share_a_gpu_share_its_memory(self, share: float, memory: float) -> None:
        fields: dict[str, Any] = {"accelerator": "gpu", "num_gpus": share}
        assert engine_kwargs(ModelSpec(**fields))["gpu_memory_utilization"] == memory
        own = ModelSpec(**fields, engine_kwargs={"gpu_memory_utilization": 0.3})
        assert engine_kwargs(own)["gpu_memory_utilization"] == 0.3

    @pytest.mark.parametrize("whole", [None, 1])
    def test_the_memory_of_a_whole_gpu_is_left_to_vllm(self, whole: float | None) -> None:
        kwargs = engine_kwargs(ModelSpec(accelerator="gpu", num_gpus=whole))
        assert "gpu_memory_utilization" not in kwargs
        assert "enforce_eager" not in kwargs

    def test_the_cache_of_a_cpu_replica_is_passed_in_bytes(self) -> None:
        kwargs = engine_kwargs(ModelSpec(kv_cache_gib=0.5))
        assert kwargs["kv_cache_memory_bytes"] == 536_870_912


class TestEnvironment:
    @pytest.fixture(autouse=True)
    def secrets(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "LLM_WORKBENCH_API_KEY", "VLLM_API_KEY"):
            monkeypatch.setenv(name, "the-secret")

    @pytest.mark.parametrize("accelerator", ["cpu", "gpu"])
    @pytest.mark.parametrize("source", ["tiny", "org/gated"])
    def test_it_contains_no_secret(self, accelerator: Any, source: str) -> None:
        variables = environment(ModelSpec(source=source, accelerator=accelerator))
        assert os.environ["HF_TOKEN"] == "the-secret"
        assert "the-secret" not in variables.values()
        assert not any("TOKEN" in name and "TOKENIZERS" not in name for name in variables)

    def test_a_local_model_needs_no_hub(self, tmp_path: Path) -> None:
        assert environment(ModelSpec())["HF_HUB_OFFLINE"] == "1"
        assert environment(ModelSpec(source=str(tmp_path)))["HF_HUB_OFFLINE"] == "1"
        assert "HF_HUB_OFFLINE" not in environment(ModelSpec(source="org/model"))

    def test_usage_is_not_reported(self) -> None:
        assert environment(ModelSpec())["VLLM_NO_USAGE_STATS"] == "1"

    def test_the_variables_of_the_spec_override_the_defaults(self) -> None:
        own = {"OMP_NUM_THREADS": "3", "MINE": "x"}
        assert environment(ModelSpec(env=own)).items() >= own.items()

    @pytest.mark.parametrize(("cpus", "threads"), [(0.25, "1"), (1, "1"), (2.9, "2"), (8, "8")])
    def test_threads_follow_the_cpus(self, cpus: float, threads: str) -> None:
        assert environment(ModelSpec(num_cpus=cpus))["OMP_NUM_THREADS"] == threads

    @pytest.mark.parametrize(
        ("sizes", "cores", "binding"),
        [
            ((1, 1), 2, "nobind"),
            ((2, 1), 4, "0|1"),
            ((2, 2), 8, "0|1|2|3"),
            ((3, 1), 2, "0|1|0"),
            ((2, 1), None, "0|0"),
        ],
    )
    def test_each_of_several_workers_is_bound_to_a_core(
        self,
        monkeypatch: pytest.MonkeyPatch,
        sizes: tuple[int, int],
        cores: int | None,
        binding: str,
    ) -> None:
        monkeypatch.setattr(os, "cpu_count", lambda: cores)
        model = ModelSpec(tensor_parallel_size=sizes[0], pipeline_parallel_size=sizes[1])
        assert environment(model)["VLLM_CPU_OMP_THREADS_BIND"] == binding

    def test_vllms_ray_executor_is_told_the_share_of_a_gpu_only_if_it_is_a_fraction(self) -> None:
        half = environment(ModelSpec(accelerator="gpu", num_gpus=0.5))
        assert float(half["VLLM_RAY_PER_WORKER_GPUS"]) == 0.5
        for whole in (None, 1):
            model = ModelSpec(accelerator="gpu", num_gpus=whole)
            assert "VLLM_RAY_PER_WORKER_GPUS" not in environment(model)

    def test_a_gpu_replica_has_no_variables_for_cpus(self) -> None:
        variables = environment(ModelSpec(accelerator="gpu"))
        assert not {"OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND"} & set(variables)
