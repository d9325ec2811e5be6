"""From a model's specification to vLLM; vLLM itself says which arguments it knows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from serving.engine import engine_args
from serving.engine.engine_args import (
    OWN_FIELDS,
    check,
    engine_arguments,
    engine_kwargs,
    environment,
)
from serving.errors import MissingPackageError, ModelNotFoundError, SpecError
from serving.models.embedded import tiny_model_path
from serving.spec.model import ModelSpec

ASK_VLLM = """
import dataclasses, json
from vllm.engine.arg_utils import AsyncEngineArgs
print(json.dumps([field.name for field in dataclasses.fields(AsyncEngineArgs)]))
"""


@pytest.mark.slow
def test_the_list_of_arguments_is_vllms_own() -> None:
    told = subprocess.run(
        [sys.executable, "-c", ASK_VLLM], capture_output=True, text=True, check=True
    )
    assert engine_arguments() == set(json.loads(told.stdout.splitlines()[-1]))


class TestArguments:
    def test_well_known_ones_are_known_and_vllm_is_not_imported(self) -> None:
        ask = (
            "import sys; from serving.engine.engine_args import engine_arguments;"
            "known = engine_arguments();"
            "assert {'model', 'max_num_seqs', 'enable_log_requests', 'seed'} <= known;"
            "assert not {'vllm', 'torch', 'ray'} & set(sys.modules), 'heavy'"
        )
        subprocess.run([sys.executable, "-c", ask], check=True)

    def test_without_vllm_the_message_has_the_command_that_installs_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(engine_args, "find_spec", lambda name: None)
        engine_arguments.cache_clear()
        try:
            with pytest.raises(MissingPackageError, match=r"'vllm' is not installed.*make setup"):
                check(ModelSpec(engine_kwargs={"seed": 1}))
        finally:
            engine_arguments.cache_clear()

    @pytest.mark.parametrize(
        ("name", "nearest"),
        [
            ("max_num_seq", "max_num_seqs"),
            ("gpu_memory_utilisation", "gpu_memory_utilization"),
            ("enable_prefix_cachin", "enable_prefix_caching"),
        ],
    )
    def test_an_unknown_one_is_refused_with_the_nearest_name(self, name: str, nearest: str) -> None:
        with pytest.raises(SpecError) as caught:
            check(ModelSpec(engine_kwargs={"seed": 1, name: 17}))
        said = str(caught.value)
        assert f"model.engine_kwargs[{name!r}] = 17" in said
        assert f"Did you mean {nearest!r}?" in said

    def test_an_unknown_one_like_nothing_is_refused_too(self) -> None:
        with pytest.raises(SpecError, match="vLLM has no such argument"):
            check(ModelSpec(engine_kwargs={"qqqq": 1}))

    @pytest.mark.parametrize(
        ("name", "instead"),
        [
            ("model", "model.source"),
            ("served_model_name", "model.id"),
            ("dtype", "model.dtype"),
            ("max_model_len", "model.max_model_len"),
            ("tensor_parallel_size", "model.tensor_parallel_size"),
            ("pipeline_parallel_size", "model.pipeline_parallel_size"),
            ("api_key", "api_key of deploy()"),
        ],
    )
    def test_one_that_another_field_sets_is_refused_with_that_field(
        self, name: str, instead: str
    ) -> None:
        with pytest.raises(SpecError, match=rf"engine_kwargs\['{name}'\]") as caught:
            check(ModelSpec(engine_kwargs={name: "x"}))
        assert f"set {instead} instead" in str(caught.value)

    def test_every_field_it_points_to_exists(self) -> None:
        pointed = {where.removeprefix("model.") for where in OWN_FIELDS.values()}
        elsewhere = {"api_key of deploy()", "the environment variable HF_TOKEN"}
        assert pointed - elsewhere <= set(ModelSpec.model_fields)

    def test_what_vllm_knows_passes_through(self) -> None:
        given: dict[str, Any] = {"max_num_seqs": 4, "seed": 7, "enforce_eager": False}
        model = ModelSpec(engine_kwargs=given)
        check(model)
        assert engine_kwargs(model).items() >= given.items()
        assert model.engine_kwargs == given

    def test_absent_stays_absent(self) -> None:
        assert "max_model_len" not in engine_kwargs(ModelSpec())
        assert engine_kwargs(ModelSpec(max_model_len=256))["max_model_len"] == 256

    def test_all_that_is_passed_is_known_to_vllm(self) -> None:
        for model in (
            ModelSpec(max_model_len=256),
            ModelSpec(accelerator="gpu", num_gpus=0.5),
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
    def test_a_whole_gpu_is_left_to_vllm(self, whole: float | None) -> None:
        given = engine_kwargs(ModelSpec(accelerator="gpu", num_gpus=whole))
        assert "gpu_memory_utilization" not in given
        assert "enforce_eager" not in given

    def test_the_cache_of_a_cpu_replica_is_counted_in_bytes(self) -> None:
        given = engine_kwargs(ModelSpec(kv_cache_gib=0.5))
        assert given["kv_cache_memory_bytes"] == 536_870_912


class TestModelPath:
    def test_one_that_does_not_exist(self, tmp_path: Path) -> None:
        missing = str(tmp_path / "nowhere")
        with pytest.raises(ModelNotFoundError) as caught:
            check(ModelSpec(source=missing))
        assert f"model.source = {missing!r} does not exist" in str(caught.value)
        assert "Hugging Face" in str(caught.value)

    def test_a_folder_without_a_model(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFoundError, match=r"has no config\.json"):
            check(ModelSpec(source=str(tmp_path)))

    @pytest.mark.parametrize("source", ["./nowhere", "../nowhere", "~/nowhere-at-all", "/nowhere"])
    def test_what_looks_like_a_path_is_one(self, source: str) -> None:
        with pytest.raises(ModelNotFoundError, match="does not exist"):
            check(ModelSpec(source=source))

    def test_a_relative_folder_that_exists_is_a_path(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "org" / "empty").mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ModelNotFoundError, match=r"has no config\.json"):
            check(ModelSpec(source="org/empty"))

    def test_a_model_a_hub_id_and_the_embedded_model_pass(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{}")
        for source in (str(tmp_path), str(tiny_model_path()), "tiny", "org/model-7B"):
            check(ModelSpec(source=source))


class TestEnvironment:
    @pytest.fixture(autouse=True)
    def secrets(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "LLM_WORKBENCH_API_KEY", "VLLM_API_KEY"):
            monkeypatch.setenv(name, "the-secret")

    @pytest.mark.parametrize("accelerator", ["cpu", "gpu"])
    @pytest.mark.parametrize("source", ["tiny", "org/gated"])
    def test_it_holds_no_secret(self, accelerator: Any, source: str) -> None:
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

    def test_the_specs_own_variables_have_the_last_word(self) -> None:
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

    def test_a_share_of_a_card_is_told_to_vllms_ray_executor_and_a_whole_one_is_not(self) -> None:
        half = environment(ModelSpec(accelerator="gpu", num_gpus=0.5))
        assert float(half["VLLM_RAY_PER_WORKER_GPUS"]) == 0.5
        for whole in (None, 1):
            model = ModelSpec(accelerator="gpu", num_gpus=whole)
            assert "VLLM_RAY_PER_WORKER_GPUS" not in environment(model)

    def test_a_gpu_replica_has_none_of_the_cpus_variables(self) -> None:
        variables = environment(ModelSpec(accelerator="gpu"))
        assert not {"OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND"} & set(variables)
