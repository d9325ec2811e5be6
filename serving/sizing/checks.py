"""Parallel sizes and memory, checked against the model's own config.json before anything starts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.errors import ResourcesError, SpecError
from serving.sizing.architecture import Architecture, architecture, read
from serving.sizing.layouts import divides, gpus_of
from serving.sizing.memory import (
    BLOCK,
    GIB,
    UTILIZATION,
    Layout,
    Sizes,
    blocks,
    gpu_memory,
    kv_token_bytes,
    weight_bytes,
)

if TYPE_CHECKING:
    from serving.spec.model import ModelSpec

HUB_TIMEOUT_S = 5.0


def layout_of(model: ModelSpec) -> Layout:
    """How the spec lays one replica out."""
    return Layout(
        model.tensor_parallel_size,
        model.pipeline_parallel_size,
        model.data_parallel_size,
        model.expert_parallel,
    )


def sizes_of(model: ModelSpec) -> Sizes:
    """The types that the spec gives to weights and KV cache."""
    given = model.engine_kwargs
    return Sizes(
        model.resolved_dtype,
        str(given.get("kv_cache_dtype", "auto")),
        given.get("quantization") or None,
    )


def architecture_of(model: ModelSpec) -> Architecture | None:
    """What the model's config.json says, from its folder or the hub; None where it is not to be had
    or of a family we know nothing of.
    """
    if Path(model.path).expanduser().is_dir():
        return read(model.path)
    if "://" in model.source or model.source.startswith(("/", ".", "~")):
        return None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(model.source, "config.json")
    if isinstance(cached, str):
        return read(Path(cached).parent)
    config = _hub_config(model.source) if _worth_asking(model) else None
    try:
        return None if config is None else architecture(config)
    except (ValueError, KeyError, TypeError):
        return None


@cache
def _hub_config(source: str) -> dict[str, Any] | None:
    """The hub's config.json; None without network, model or right to it: the engine will say.

    The hub's own library would try for half a minute.
    """
    import httpx
    from huggingface_hub import get_token, hf_hub_url

    headers = {"Authorization": f"Bearer {token}"} if (token := get_token()) else {}
    try:
        url = hf_hub_url(source, "config.json")
        answer = httpx.get(url, headers=headers, timeout=HUB_TIMEOUT_S, follow_redirects=True)
        found = answer.raise_for_status().json()
    except (httpx.HTTPError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _worth_asking(model: ModelSpec) -> bool:
    """A call to the hub only where a large model may be at stake, and the hub is allowed."""
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    return not offline and (model.accelerator == "gpu" or model.workers > 1)


def check_parallel(model: ModelSpec) -> None:
    """Raise :class:`SpecError` for a parallel size that the model cannot be split by."""
    layout = layout_of(model)
    if layout == Layout():
        return
    known = architecture_of(model)
    if known is None:
        return
    if not known.experts and (layout.data > 1 or layout.expert):
        field = "data_parallel_size" if layout.data > 1 else "expert_parallel"
        raise SpecError(
            f"model.{field} = {getattr(model, field)!r}, but {model.model_id} has no experts to "
            "share; give it more replicas (scaling.max_replicas) instead."
        )
    if reason := divides(known, layout, model.env.get("VLLM_PP_LAYER_PARTITION")):
        raise SpecError(
            f"model.{reason} of {model.model_id}. Choose a size that does"
            + _own_stages(known, layout)
            + "."
        )


def _own_stages(known: Architecture, layout: Layout) -> str:
    if known.layers % layout.pipeline == 0 or layout.pipeline > known.layers:
        return ""
    from serving.sizing.memory import layers_of_stage

    stages = ",".join(map(str, layers_of_stage(known.layers, layout.pipeline)))
    return f", or name stages of unequal length: env = {{'VLLM_PP_LAYER_PARTITION': '{stages}'}}"


def check_cache(model: ModelSpec) -> None:
    """Raise :class:`SpecError` for a CPU's KV cache in which not one whole sequence has room."""
    if model.accelerator != "cpu" or "kv_cache_memory_bytes" in model.engine_kwargs:
        return
    known = architecture_of(model)
    if known is None:
        return
    context = model.max_model_len or known.context
    token = kv_token_bytes(known, layout_of(model), sizes_of(model))
    block = int(model.engine_kwargs.get("block_size") or BLOCK["cpu"])
    room = blocks(model.kv_cache_gib * GIB, token, block) * block
    if room < context:
        raise SpecError(
            f"model.kv_cache_gib = {model.kv_cache_gib:g} has room for {room} tokens, and one "
            f"sequence of {model.model_id} has up to {context}. Give "
            f"{context * token / GIB:.2g} GiB or more, or a smaller max_model_len."
        )


def check_memory(model: ModelSpec, nodes: Iterable[Mapping[str, Any]]) -> None:
    """Raise :class:`ResourcesError` for a model that cannot fit, whatever the estimates say.

    On GPUs of a known type: weights that exceed what vLLM may use of one, or leave no room for one
    sequence even if activations took nothing. On CPUs: weights and KV cache beyond any node.
    """
    known = architecture_of(model)
    if known is None:
        return
    if model.accelerator == "cpu":
        return _check_ram(model, known, nodes)
    gpus = gpus_of(nodes, model.accelerator_type)
    if gpus is None:
        return
    share = float(model.engine_kwargs.get("gpu_memory_utilization") or UTILIZATION)
    share *= model.num_gpus or 1.0
    estimate = gpu_memory(known, layout_of(model), sizes_of(model), gpus.gib, utilization=share)
    least = replace(estimate, activations=0.0, overhead=0.0)
    context = model.max_model_len or known.context
    if least.tokens >= context:
        return
    raise ResourcesError(
        f"{model.model_id} does not fit: {layout_of(model)} puts {least.weights / GIB:.1f} GiB of "
        f"weights on each {gpus.kind}, of whose {gpus.gib:g} GiB vLLM may use "
        f"{least.budget / GIB:.1f}, which leaves KV cache for {least.tokens} tokens where one "
        f"sequence has up to {context}. Raise tensor_parallel_size, quantize, or lower "
        "max_model_len."
    )


def _check_ram(model: ModelSpec, known: Architecture, nodes: Iterable[Mapping[str, Any]]) -> None:
    weights = weight_bytes(known, layout_of(model), sizes_of(model)) / GIB
    need = model.workers * (weights + model.kv_cache_gib)
    largest = max((float(node.get("memory", 0)) for node in nodes), default=0.0) / GIB
    if largest and need > largest:
        raise ResourcesError(
            f"{model.model_id} does not fit: {weights * model.workers:.1f} GiB of weights and "
            f"kv_cache_gib = {model.kv_cache_gib:g} for each of {model.workers} worker(s) exceed "
            f"the {largest:.1f} GiB of the largest node. Lower kv_cache_gib, or add a larger node."
        )
