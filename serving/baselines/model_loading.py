"""Load a baseline's model as vLLM would. Imports transformers, so only the engine imports this."""

from __future__ import annotations

import gc
import math
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from serving.spec.baseline import BaselineSpec
from serving.spec.model import ModelSpec


def load(spec: BaselineSpec) -> Any:
    """Load the model on its device; `load_format="dummy"` gives random weights."""
    model = spec.model
    device = _prepare_device(model)
    options = {"dtype": getattr(torch, model.resolved_dtype), "attn_implementation": spec.attention}
    if model.engine_kwargs.get("load_format") == "dummy":
        with torch.device(device):
            config = AutoConfig.from_pretrained(model.path)
            loaded = AutoModelForCausalLM.from_config(config, **options)
    else:
        loaded = AutoModelForCausalLM.from_pretrained(model.path, **options)
    loaded = loaded.to(device).eval().requires_grad_(False)
    # The model's own config would add sampling and end tokens that a request did not ask for.
    loaded.end_tokens = end_tokens(loaded)
    loaded.generation_config = GenerationConfig(pad_token_id=0, do_sample=False)
    return loaded


def _prepare_device(model: ModelSpec) -> str:
    if model.accelerator == "gpu":
        # Beyond its share of the GPU a baseline must run out of memory, as vLLM would.
        torch.cuda.set_per_process_memory_fraction(min(1.0, model.num_gpus or 1.0))
        return "cuda"
    torch.set_num_threads(max(1, int(model.num_cpus)))
    return "cpu"


def end_tokens(model: Any) -> frozenset[int]:
    """Return the ids that end an answer, from the generation config or the model's config."""
    own = model.generation_config.eos_token_id
    ids = model.config.eos_token_id if own is None else own
    return frozenset(() if ids is None else [ids] if isinstance(ids, int) else ids)


def kv_bytes_per_token(model: Any) -> int:
    """Return the bytes of KV cache per token: keys and values of every layer and KV head."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    value_bytes = torch.empty((), dtype=model.dtype).element_size()
    return int(2 * config.num_hidden_layers * kv_heads * head_dim * value_bytes)


def kv_tokens(spec: ModelSpec, bytes_per_token: int) -> int | None:
    """Return the tokens in a CPU's KV cache, which is as large as vLLM's; None on a GPU.

    On a GPU, the memory itself is the limit.
    """
    if spec.accelerator == "gpu":
        return None
    return math.floor(spec.kv_cache_gib * 2**30 / bytes_per_token)


def free_share(spec: ModelSpec) -> float | None:
    """Return this baseline's share of a GPU's free memory; None for a whole GPU or a CPU.

    transformers sizes its cache by the free memory of the whole GPU, which others use in part.
    """
    if spec.accelerator != "gpu" or (spec.num_gpus or 1.0) >= 1.0:
        return None
    total = int(torch.cuda.get_device_properties(0).total_memory)
    used = int(torch.cuda.memory_reserved(0))
    return max(0.0, (spec.num_gpus or 1.0) * total - used) / (total - used)


def free_memory() -> None:
    """Release the memory that a failed batch still holds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
