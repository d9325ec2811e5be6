"""Check parallel sizes and memory against the model's config.json before anything starts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.errors import ResourcesError, SpecError
from serving.sizing.architecture import Architecture, parse_architecture, read_architecture
from serving.sizing.layouts import gpus_of, why_not_divisible
from serving.sizing.memory import (
    BLOCK_TOKENS,
    GIB,
    UTILIZATION,
    DataTypes,
    Layout,
    blocks,
    gpu_memory,
    kv_token_bytes,
    layers_of_stage,
    weight_bytes,
)

if TYPE_CHECKING:
    from serving.spec.model import ModelSpec

HUB_TIMEOUT_S = 5.0


def layout_of(model: ModelSpec) -> Layout:
    """Return the layout of one replica."""
    return Layout(
        model.tensor_parallel_size,
        model.pipeline_parallel_size,
        model.data_parallel_size,
        model.expert_parallel,
    )


def data_types_of(model: ModelSpec) -> DataTypes:
    """Return the data types of weights and KV cache."""
    return DataTypes(
        model.resolved_dtype,
        str(model.engine_kwargs.get("kv_cache_dtype", "auto")),
        model.engine_kwargs.get("quantization") or None,
    )


def architecture_of(model: ModelSpec) -> Architecture | None:
    """Return a model's architecture from its folder or from the hub.

    None if its config.json cannot be read, or its family is not supported.
    """
    if Path(model.path).expanduser().is_dir():
        return read_architecture(model.path)
    if "://" in model.source or model.source.startswith(("/", ".", "~")):
        return None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(model.source, "config.json")
    if isinstance(cached, str):
        return read_architecture(Path(cached).parent)
    config = _hub_config(model.source) if _may_ask_hub(model) else None
    try:
        return None if config is None else parse_architecture(config)
    except (ValueError, KeyError, TypeError):
        return None


@cache
def _hub_config(source: str) -> dict[str, Any] | None:
    """Return the hub's config.json; None without network, model or permission.

    The engine reports such problems itself. The hub's own library would retry for half a minute.
    """
    import httpx
    from huggingface_hub import get_token, hf_hub_url

    headers = {"Authorization": f"Bearer {token}"} if (token := get_token()) else {}
    try:
        url = hf_hub_url(source, "config.json")
        response = httpx.get(url, headers=headers, timeout=HUB_TIMEOUT_S, follow_redirects=True)
        config = response.raise_for_status().json()
    except (httpx.HTTPError, ValueError):
        return None
    return config if isinstance(config, dict) else None


def _may_ask_hub(model: ModelSpec) -> bool:
    """Return whether the model may be large, and the hub may be called."""
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    return not offline and (model.accelerator == "gpu" or model.workers > 1)


def check_parallel(model: ModelSpec) -> None:
    """Check that the model can be split by its parallel sizes.

    Raises:
        SpecError: The model cannot be split.
    """
    layout = layout_of(model)
    if layout == Layout():
        return
    architecture = architecture_of(model)
    if architecture is None:
        return
    if not architecture.experts and (layout.data > 1 or layout.expert):
        field = "data_parallel_size" if layout.data > 1 else "expert_parallel"
        raise SpecError(
            f"model.{field} must be left out, because {model.model_id} has no experts to share, "
            f"got {getattr(model, field)!r}; raise scaling.max_replicas instead"
        )
    partition = model.env.get("VLLM_PP_LAYER_PARTITION")
    if reason := why_not_divisible(architecture, layout, partition):
        raise SpecError(
            f"model.{reason} ({model.model_id}); choose another size"
            + _stage_suggestion(architecture, layout)
        )


def _stage_suggestion(architecture: Architecture, layout: Layout) -> str:
    layers, stages = architecture.layers, layout.pipeline
    if layers % stages == 0 or stages > layers:
        return ""
    partition = ",".join(map(str, layers_of_stage(layers, stages)))
    return f", or set stages of unequal length: env = {{'VLLM_PP_LAYER_PARTITION': '{partition}'}}"


def check_cache(model: ModelSpec) -> None:
    """Check that the KV cache of a CPU worker has room for one whole sequence.

    Raises:
        SpecError: The KV cache is too small.
    """
    if model.accelerator != "cpu" or "kv_cache_memory_bytes" in model.engine_kwargs:
        return
    architecture = architecture_of(model)
    if architecture is None:
        return
    context = model.max_model_len or architecture.context
    token = kv_token_bytes(architecture, layout_of(model), data_types_of(model))
    block = int(model.engine_kwargs.get("block_size") or BLOCK_TOKENS["cpu"])
    capacity = blocks(model.kv_cache_gib * GIB, token, block) * block
    if capacity < context:
        raise SpecError(
            f"model.kv_cache_gib must have room for one sequence of {model.model_id}, got "
            f"{model.kv_cache_gib:g} with room for {capacity} tokens of up to {context}; set it to "
            f"{context * token / GIB:.2g} or more, or lower max_model_len"
        )


def check_memory(model: ModelSpec, nodes: Iterable[Mapping[str, Any]]) -> None:
    """Check that the model can fit, by numbers that are exact and not estimates.

    On GPUs of a known type, weights and the KV cache of one sequence must fit into what vLLM may
    use, without activations. On CPUs, weights and KV cache must fit on one node.

    Args:
        model: The model.
        nodes: Resources of each node, as Ray reports them.

    Raises:
        ResourcesError: The model cannot fit.
    """
    architecture = architecture_of(model)
    if architecture is None:
        return
    if model.accelerator == "cpu":
        return _check_ram(model, architecture, nodes)
    gpus = gpus_of(nodes, model.accelerator_type)
    if gpus is None:
        return
    share = float(model.engine_kwargs.get("gpu_memory_utilization") or UTILIZATION)
    share *= model.num_gpus or 1.0
    layout, types = layout_of(model), data_types_of(model)
    estimate = gpu_memory(architecture, layout, types, gpus.gib, utilization=share)
    exact = replace(estimate, activations=0.0, overhead=0.0)
    context = model.max_model_len or architecture.context
    if exact.tokens >= context:
        return
    raise ResourcesError(
        f"{model.model_id} does not fit: {layout} needs {exact.weights / GIB:.1f} GiB of weights "
        f"on each {gpus.kind}, and vLLM may use {exact.budget / GIB:.1f} of its {gpus.gib:g} GiB. "
        f"That leaves KV cache for {exact.tokens} tokens, but one sequence has up to {context}; "
        "raise tensor_parallel_size, quantize the model, or lower max_model_len"
    )


def _check_ram(
    model: ModelSpec, architecture: Architecture, nodes: Iterable[Mapping[str, Any]]
) -> None:
    weights = weight_bytes(architecture, layout_of(model), data_types_of(model)) / GIB
    need = model.workers * (weights + model.kv_cache_gib)
    largest = max((float(node.get("memory", 0)) for node in nodes), default=0.0) / GIB
    if largest and need > largest:
        raise ResourcesError(
            f"{model.model_id} does not fit: {weights * model.workers:.1f} GiB of weights and "
            f"kv_cache_gib = {model.kv_cache_gib:g} for each of {model.workers} worker(s) exceed "
            f"the {largest:.1f} GiB of the largest node; lower kv_cache_gib, or add a larger node"
        )
