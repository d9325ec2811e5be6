"""Sizes against published counts and numbers worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serving.deploy.preflight import check_resources
from serving.errors import ResourcesError, SpecError
from serving.sizing.architecture import Architecture, parse_architecture, read_architecture
from serving.sizing.checks import check_cache, check_parallel, layout_of
from serving.sizing.layouts import GpuPool, gpus_of, plans, recommend, why_not_divisible
from serving.sizing.memory import (
    GIB,
    DataTypes,
    Layout,
    kv_token_bytes,
    layers_of_stage,
    weight_bytes,
)
from serving.spec.model import ModelSpec
from serving.spec.service import ServiceSpec
from workbench.analysis.layouts import SHAPES

ONE_GPU, BFLOAT16 = Layout(), DataTypes()
LLAMA_8B, LLAMA_70B, MIXTRAL = (
    SHAPES[name] for name in ("Llama-3.1-8B", "Llama-3.1-70B", "Mixtral-8x7B")
)
QWEN_7B = {
    "model_type": "qwen2",
    "num_hidden_layers": 28,
    "hidden_size": 3584,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
}
QWEN_30B_A3B = {
    "model_type": "qwen3_moe",
    "num_hidden_layers": 48,
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
}


def of(config: dict[str, Any]) -> Architecture:
    architecture = parse_architecture(config)
    assert architecture is not None
    return architecture


class TestKnownModels:
    @pytest.mark.parametrize(
        ("config", "billions"),
        # As in their model cards.
        [(LLAMA_8B, 8.03), (LLAMA_70B, 70.6), (MIXTRAL, 46.7), (QWEN_7B, 7.62)]
        + [(QWEN_30B_A3B, 30.5)],
    )
    def test_published_numbers_of_parameters(self, config: dict[str, Any], billions: float) -> None:
        assert of(config).parameters / 1e9 == pytest.approx(billions, abs=0.05 * billions / 10)

    def test_llama_8b_worked_out_by_hand(self) -> None:
        # A layer: q and o of 4096², k and v of 4096 × 1024, three of 4096 × 14336, two norms of
        # 4096. The model: 32 layers, table and head of 128256 × 4096, one norm.
        layer = 2 * 16_777_216 + 2 * 4_194_304 + 3 * 58_720_256 + 8192
        whole = 32 * layer + 2 * 525_336_576 + 4096
        assert whole == 8_030_261_248
        assert of(LLAMA_8B).parameters == whole
        assert (
            weight_bytes(of(LLAMA_8B), ONE_GPU, BFLOAT16) == 2 * whole
        )  # 16.06 GB; 128256 = 64 × 2004
        # A key and a value of 8 heads × 128, 2 bytes each, in 32 layers: 128 KiB per token.
        assert kv_token_bytes(of(LLAMA_8B), ONE_GPU, BFLOAT16) == 2 * 8 * 128 * 2 * 32 == 131_072

    def test_tensor_parallelism_splits_everything_but_norms(self) -> None:
        # 65 norms of 4096 values of 2 bytes are on both GPUs; everything else is halved.
        norms = 65 * 4096 * 2
        halved = (16_060_522_496 - norms) / 2 + norms
        assert weight_bytes(of(LLAMA_8B), Layout(2), BFLOAT16) == halved
        assert kv_token_bytes(of(LLAMA_8B), Layout(2), BFLOAT16) == 65_536

    def test_kv_heads_are_copied_where_there_are_fewer_than_gpus(self) -> None:
        assert kv_token_bytes(of(QWEN_7B), Layout(4), BFLOAT16) == 28 * 2 * 128 * 2
        eight = of(QWEN_7B | {"num_attention_heads": 32, "head_dim": 112})
        assert kv_token_bytes(eight, Layout(8), BFLOAT16) == kv_token_bytes(
            eight, Layout(4), BFLOAT16
        )
        # 4 KV heads on 8 GPUs become 8: their projections and biases count twice.
        by_hand = 28 * 2 * 4 * 112 * (3584 + 1) * 2 / 8
        halved = weight_bytes(eight, Layout(4), BFLOAT16) / 2
        extra = weight_bytes(eight, Layout(8), BFLOAT16) - halved
        norms = (57 * 3584) * 2 / 2
        assert extra == pytest.approx(by_hand + norms)

    def test_layers_of_stages_are_those_of_vllm(self) -> None:
        assert layers_of_stage(32, 4) == [8, 8, 8, 8]
        assert layers_of_stage(61, 4) == [15, 15, 16, 15]
        assert layers_of_stage(6, 4) == [1, 2, 2, 1]

    def test_stage_has_its_layers_and_one_of_the_tables(self) -> None:
        layer = 2 * 16_777_216 + 2 * 4_194_304 + 3 * 58_720_256 + 8192
        last = 16 * layer + 525_336_576 + 4096
        assert weight_bytes(of(LLAMA_8B), Layout(1, 2), BFLOAT16) == 2 * last

    def test_data_parallelism_splits_experts_and_copies_the_rest(self) -> None:
        expert = 3 * 4096 * 14336
        whole = weight_bytes(of(MIXTRAL), ONE_GPU, BFLOAT16)
        shared = weight_bytes(of(MIXTRAL), Layout(data=2, expert=True), BFLOAT16)
        assert whole - shared == 32 * 4 * expert * 2  # half of the 8 experts, bfloat16

    @pytest.mark.parametrize(
        ("config", "quantization", "bits"),
        [
            ({}, "fp8", 8.0),
            ({"quant_method": "awq", "bits": 4, "group_size": 128}, None, 4 + 20 / 128),
            ({"quant_method": "gptq", "bits": 8, "group_size": 128}, None, 8.0),
        ],
    )
    def test_quantized_layers(
        self, config: dict[str, Any], quantization: str | None, bits: float
    ) -> None:
        model = of(LLAMA_8B | ({"quantization_config": config} if config else {}))
        linear = 32 * (2 * 16_777_216 + 2 * 4_194_304 + 3 * 58_720_256)
        rest = (8_030_261_248 - linear) * 2
        expected = linear * bits / 8 + rest
        assert weight_bytes(model, ONE_GPU, DataTypes(quantization=quantization)) == expected

    def test_8_bit_kv_cache_needs_half(self) -> None:
        assert kv_token_bytes(of(LLAMA_8B), ONE_GPU, DataTypes(kv_dtype="fp8_e5m2")) == 65_536

    def test_unsupported_family_and_missing_fields_give_none(self, tmp_path: Path) -> None:
        assert parse_architecture({"model_type": "mamba"}) is None
        assert read_architecture(tmp_path) is None
        (tmp_path / "config.json").write_text('{"model_type": "llama"}')
        assert read_architecture(tmp_path) is None


class TestPlans:
    def test_8b_model_on_eight_h100_gets_eight_replicas(self) -> None:
        layouts = plans(of(LLAMA_8B), GpuPool((8,), 79.6, "H100"), context=8192)
        assert [(p.layout.tensor, p.layout.pipeline, p.replicas) for p in layouts][:3] == [
            (1, 1, 8),
            (2, 1, 4),
            (1, 2, 4),
        ]
        advice = recommend(layouts, 64)
        assert advice.plan == layouts[0]
        assert "of 64 requested" in advice.reason

    def test_70b_model_needs_four_gpus_for_its_cache(self) -> None:
        layouts = plans(of(LLAMA_70B), GpuPool((8,), 79.6, "H100"), context=8192)
        # By hand: 141.1 GB of bfloat16 exceed one GPU with 0.92 × 79.6 GiB = 78.6 GB.
        assert layouts[0].problem is not None
        assert "131.4 GiB of weights" in layouts[0].problem
        advice = recommend(layouts, 64)
        assert advice.plan is not None
        assert (advice.plan.layout, advice.plan.replicas) == (Layout(4), 2)
        assert "hold 12" in advice.reason  # with two GPUs per replica

    def test_too_many_sequences_get_the_layout_that_holds_most(self) -> None:
        layouts = plans(of(LLAMA_8B), GpuPool((8,), 79.6, "H100"), context=8192)
        advice = recommend(layouts, 100_000)
        assert advice.plan is not None
        assert advice.plan.layout == Layout(8)
        assert "wait" in advice.reason

    def test_tensor_parallel_group_stays_on_a_node(self) -> None:
        layouts = plans(of(LLAMA_8B), GpuPool((2, 2, 1), 79.6), context=8192)
        assert {p.layout.tensor for p in layouts} == {1, 2}
        by_layout = {p.layout: p.replicas for p in layouts}
        assert by_layout[Layout(2)] == 2
        assert by_layout[Layout(1)] == 5
        assert Layout(2, 2) in by_layout

    def test_reason_where_no_layout_fits(self) -> None:
        advice = recommend(plans(of(LLAMA_70B), GpuPool((1,), 22.5, "L4"), context=8192), 1)
        assert advice.plan is None
        assert "131.4 GiB of weights" in advice.reason

    def test_gpus_of_a_cluster(self) -> None:
        nodes = [
            {"CPU": 8.0},
            {"GPU": 8.0, "accelerator_type:H100": 1.0},
            {"GPU": 4.0, "accelerator_type:L4": 1.0},
            {"GPU": 2.0, "accelerator_type:Mystery": 1.0},
        ]
        assert gpus_of(nodes) == GpuPool((8,), 79.6, "H100")
        assert gpus_of(nodes, "L4") == GpuPool((4,), 22.5, "L4")
        assert gpus_of(nodes, "A100") is None
        assert gpus_of(nodes[:1]) is None


def model_folder(folder: Path, config: dict[str, Any]) -> str:
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


class TestChecks:
    @pytest.mark.parametrize(
        ("config", "model", "parts"),
        [
            (LLAMA_8B, {"tensor_parallel_size": 3}, ["got 3", "32 attention heads"]),
            (
                LLAMA_8B | {"num_key_value_heads": 6, "num_attention_heads": 12, "head_dim": 64},
                {"tensor_parallel_size": 4},
                ["got 4", "6 KV heads"],
            ),
            (LLAMA_8B | {"intermediate_size": 1001}, {"tensor_parallel_size": 2}, ["1001"]),
            (LLAMA_8B, {"pipeline_parallel_size": 3}, ["got 3", "32 layers", "'11,11,10'"]),
            (LLAMA_8B, {"pipeline_parallel_size": 33}, ["got 33", "at most", "32 layers"]),
            (
                LLAMA_8B,
                {"data_parallel_size": 2},
                ["data_parallel_size must", "got 2", "no experts"],
            ),
            (
                LLAMA_8B,
                {"expert_parallel": True},
                ["expert_parallel must", "got True", "no experts"],
            ),
            (
                MIXTRAL,
                {"tensor_parallel_size": 4, "data_parallel_size": 4, "expert_parallel": True},
                ["8 GPUs", "got 16"],
            ),
        ],
    )
    def test_parallel_size_must_divide_the_model(
        self, tmp_path: Path, config: dict[str, Any], model: dict[str, Any], parts: list[str]
    ) -> None:
        spec = ModelSpec(source=model_folder(tmp_path, config), accelerator="gpu", **model)
        with pytest.raises(SpecError) as caught:
            check_parallel(spec)
        for part in parts:
            assert part in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_valid_sizes_and_explicit_stages_pass(self, tmp_path: Path) -> None:
        source = model_folder(tmp_path, LLAMA_8B)
        for sizes in ({"tensor_parallel_size": 16}, {"pipeline_parallel_size": 4}):
            check_parallel(ModelSpec(source=source, accelerator="gpu", **sizes))
        stages = {"VLLM_PP_LAYER_PARTITION": "11,11,10"}
        check_parallel(ModelSpec(source=source, pipeline_parallel_size=3, env=stages))

    def test_embedded_model_cannot_be_split_by_three(self) -> None:
        with pytest.raises(SpecError, match="must divide the 4 attention heads, got 3"):
            check_parallel(ModelSpec(tensor_parallel_size=3))

    def test_kv_cache_must_have_room_for_one_sequence(self) -> None:
        # At 2 KiB per token and 128 tokens per block, 1/1024 GiB has room for 4 blocks.
        small = {"kv_cache_gib": 1 / 1024, "dtype": "bfloat16"}
        with pytest.raises(SpecError, match=r"room for 512 tokens.*up to 1024"):
            check_cache(ModelSpec(max_model_len=1024, **small))
        check_cache(ModelSpec(max_model_len=512, **small))

    def test_weights_must_fit_the_gpu(self, tmp_path: Path) -> None:
        source = model_folder(tmp_path, LLAMA_70B)
        nodes: Any = [
            {"CPU": 64.0, "GPU": 8.0, "accelerator_type:H100": 1.0, "memory": 512.0 * GIB}
        ]
        large = ModelSpec(source=source, accelerator="gpu", max_model_len=8192)
        with pytest.raises(ResourcesError) as caught:
            check_resources(ServiceSpec(model=large), nodes)
        for number in ("131.4 GiB", "79.6 GiB", "73.2", "8192", "TP 1"):
            assert number in str(caught.value)
        four = large.model_copy(update={"tensor_parallel_size": 4})
        check_resources(ServiceSpec(model=four), nodes)

    def test_context_must_fit_beside_the_weights(self, tmp_path: Path) -> None:
        source = model_folder(tmp_path, LLAMA_8B)
        nodes: Any = [{"CPU": 8.0, "GPU": 1.0, "accelerator_type:L4": 1.0, "memory": 64.0 * GIB}]
        whole = ModelSpec(source=source, accelerator="gpu")
        with pytest.raises(ResourcesError, match="131072"):
            check_resources(ServiceSpec(model=whole), nodes)
        short = whole.model_copy(update={"max_model_len": 8192})
        check_resources(ServiceSpec(model=short), nodes)

    def test_kv_cache_must_fit_on_a_node(self) -> None:
        nodes: Any = [{"CPU": 8.0, "memory": 16.0 * GIB}]
        with pytest.raises(ResourcesError, match=r"kv_cache_gib = 20.*16\.0 GiB"):
            check_resources(ServiceSpec(model=ModelSpec(kv_cache_gib=20)), nodes)

    def test_layout_of_a_spec(self) -> None:
        spec = ModelSpec(tensor_parallel_size=2, pipeline_parallel_size=2)
        assert layout_of(spec) == Layout(2, 2)
        assert why_not_divisible(of(LLAMA_8B), Layout(2, 2)) is None
