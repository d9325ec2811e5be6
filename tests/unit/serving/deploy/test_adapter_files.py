"""LoRA adapters: what is rejected before anything starts, and what vLLM gets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.installed import source
from support.lora import write_adapter

from serving.deploy.deployments import engine_fields
from serving.deploy.preflight import check_model
from serving.engine.engine_args import engine_kwargs, environment
from serving.errors import ModelNotFoundError, SpecError
from serving.models.embedded import tiny_model_path
from serving.spec.model import ModelSpec
from serving.spec.service import ServiceSpec


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter of rank 8 of the embedded model."""
    folder = tmp_path / "pirate"
    folder.mkdir()
    write_adapter(tiny_model_path(), folder)
    return folder


def configure(folder: Path, **fields: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def check(folder: Path, **fields: Any) -> None:
    check_model(ModelSpec(adapters={"pirate": str(folder)}, **fields))


def error_of(folder: Path, **fields: Any) -> str:
    with pytest.raises(SpecError) as caught:
        check(folder, **fields)
    message = str(caught.value)
    assert message.startswith(f"model.adapters['pirate'] = {str(folder)!r}")
    return message


class TestAccepted:
    def test_a_folder_and_a_hub_id(self, adapter: Path) -> None:
        check_model(ModelSpec(adapters={"pirate": str(adapter), "butler": "org/butler"}))

    @pytest.mark.parametrize("base", ["tiny-llama-glossary", "me/tiny-llama-glossary", "/old/path"])
    def test_the_name_of_its_model(self, adapter: Path, base: str) -> None:
        configure(adapter, base_model_name_or_path=base)
        check(adapter)

    def test_a_variant_of_its_model(self, adapter: Path) -> None:
        configure(adapter, base_model_name_or_path="Qwen/Qwen3-8B")
        check(adapter, source="Qwen/Qwen3-8B")
        check(adapter, source="other/Qwen3-8B-FP8")

    def test_a_copy_of_its_model_in_a_folder(self, adapter: Path, tmp_path: Path) -> None:
        configure(adapter, base_model_name_or_path="org/any-name")
        copy = shutil.copytree(tiny_model_path(), tmp_path / "copy")
        check(adapter, source=str(copy))

    def test_weights_in_another_format(self, adapter: Path) -> None:
        (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
        check(adapter)


class TestRejected:
    def test_a_folder_that_does_not_exist(self, tmp_path: Path) -> None:
        assert "does not exist" in error_of(tmp_path / "none")

    def test_a_folder_without_an_adapter(self, tmp_path: Path) -> None:
        assert "has no adapter_config.json" in error_of(tmp_path)

    @pytest.mark.parametrize("config", ["{", "[]", '{"alpha": 1}', '{"r": "8"}', '{"r": 0}'])
    def test_an_invalid_configuration(self, adapter: Path, config: str) -> None:
        (adapter / "adapter_config.json").write_text(config)
        assert "is not the configuration of a LoRA adapter" in error_of(adapter)

    def test_no_weights(self, adapter: Path) -> None:
        (adapter / "adapter_model.safetensors").unlink()
        assert "has no weights" in error_of(adapter)

    def test_truncated_weights(self, adapter: Path) -> None:
        weights = adapter / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])
        with pytest.raises(ModelNotFoundError, match="but its header describes"):
            check(adapter)

    @pytest.mark.parametrize(
        ("fields", "problem"),
        [
            ({"peft_type": "PROMPT_TUNING"}, "is an adapter of the type 'PROMPT_TUNING'"),
            ({"use_dora": True}, "was trained with use_dora"),
            ({"bias": "all"}, "was trained with bias = 'all'"),
            ({"modules_to_save": ["lm_head"]}, "was trained with modules_to_save"),
        ],
    )
    def test_what_vllm_does_not_support(
        self, adapter: Path, fields: dict[str, Any], problem: str
    ) -> None:
        configure(adapter, **fields)
        assert f"{problem}, which vLLM does not support" in error_of(adapter)

    def test_a_rank_beyond_the_maximum(self, adapter: Path) -> None:
        configure(adapter, r=24)
        message = error_of(adapter)
        assert "rank 24, more than max_lora_rank = 16" in message
        assert "['max_lora_rank'] = 32." in message
        check(adapter, engine_kwargs={"max_lora_rank": 32})
        configure(adapter, r=1000)
        assert "smaller rank" in error_of(adapter)

    def test_an_adapter_of_another_model_by_its_name(self, adapter: Path) -> None:
        configure(adapter, base_model_name_or_path="Qwen/Qwen3-8B")
        for other in ("tiny", "Qwen/Qwen3-4B"):
            message = error_of(adapter, source=other)
            assert f"trained for the model 'Qwen/Qwen3-8B', not for model.source = {other!r}" in (
                message
            )

    def test_an_adapter_of_another_model_by_its_shapes(self, adapter: Path) -> None:
        message = error_of(adapter, source="nano")
        assert "layers.0.self_attn.q_proj with 256 inputs, but that of the model has 128" in message

    def test_an_adapter_with_other_outputs(self, adapter: Path, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        weights = adapter / "adapter_model.safetensors"
        tensors = load_file(weights)
        name = next(name for name in tensors if "lora_B" in name)
        save_file(tensors | {name: tensors[name][:100].contiguous()}, weights)
        assert "100 outputs, but that of the model has 256" in error_of(adapter)

    def test_a_module_that_the_model_does_not_have(self, adapter: Path) -> None:
        from safetensors.torch import load_file, save_file

        weights = adapter / "adapter_model.safetensors"
        tensors = {k.replace("q_proj", "qkv_proj"): v for k, v in load_file(weights).items()}
        save_file(tensors, weights)
        message = error_of(adapter)
        assert "self_attn.qkv_proj, which the model does not have" in message

    def test_lora_that_is_turned_off(self, adapter: Path) -> None:
        with pytest.raises(SpecError, match=r"model\.adapters needs LoRA"):
            check(adapter, engine_kwargs={"enable_lora": False})


class TestEngineArguments:
    def test_each_adapter_is_a_module_of_vllm(self) -> None:
        arguments = engine_kwargs(ModelSpec(adapters={"a": "/x", "b": "org/y"}, accelerator="gpu"))
        assert arguments["enable_lora"] is True
        modules = [{"name": "a", "path": "/x"}, {"name": "b", "path": "org/y"}]
        assert arguments["lora_modules"] == modules
        assert (arguments["max_loras"], arguments["max_cpu_loras"]) == (2, 2)

    def test_many_adapters_share_the_places_of_a_batch_on_a_gpu(self) -> None:
        model = ModelSpec(accelerator="gpu", adapters={str(n): "org/x" for n in range(20)})
        arguments = engine_kwargs(model)
        assert (arguments["max_loras"], arguments["max_cpu_loras"]) == (8, 20)
        given = {"max_loras": 3, "max_cpu_loras": 4}
        arguments = engine_kwargs(model.model_copy(update={"engine_kwargs": given}))
        assert (arguments["max_loras"], arguments["max_cpu_loras"]) == (3, 4)

    @pytest.mark.parametrize("count", [1, 2, 20])
    def test_a_place_stays_free_on_a_cpu(self, count: int) -> None:
        arguments = engine_kwargs(ModelSpec(adapters={str(n): "org/x" for n in range(count)}))
        assert arguments["max_loras"] == arguments["max_cpu_loras"] == count + 1

    def test_without_a_free_place_on_a_cpu_it_is_rejected(self) -> None:
        adapters = {"a": "org/a", "b": "org/b"}
        with pytest.raises(SpecError, match=r"\['max_loras'\] = 2 must be at least 3 on a CPU"):
            check_model(ModelSpec(adapters=adapters, engine_kwargs={"max_loras": 2}))
        check_model(ModelSpec(adapters=adapters, engine_kwargs={"max_loras": 3}))

    def test_the_cpu_kernels_of_vllm_apply_the_last_place_to_no_adapter(self) -> None:
        """If this fails, a free place is no longer needed."""
        code = source("vllm", "lora", "ops", "torch_ops", "lora_ops.py")
        assert code.count("lora_b_weights[lora_indices_tensor]") == 3
        assert "-1" not in code

    def test_without_adapters_there_is_no_lora(self) -> None:
        assert not {"enable_lora", "lora_modules", "max_loras"} & engine_kwargs(ModelSpec()).keys()

    def test_a_replica_gets_absolute_paths(
        self, adapter: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(adapter.parent)
        model = ModelSpec(adapters={"here": "./pirate", "hub": "org/butler"})
        fields = engine_fields(ServiceSpec(model=model), model)
        assert fields["adapters"] == {"here": str(adapter), "hub": "org/butler"}

    def test_an_adapter_of_the_hub_needs_the_hub(self, adapter: Path) -> None:
        local = environment(ModelSpec(adapters={"pirate": str(adapter)}))
        assert local["HF_HUB_OFFLINE"] == "1"
        assert "HF_HUB_OFFLINE" not in environment(ModelSpec(adapters={"pirate": "org/pirate"}))
