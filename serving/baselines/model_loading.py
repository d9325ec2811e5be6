"""The model of a baseline, loaded as vLLM loads it. Imports transformers: for the engine alone."""

from __future__ import annotations

import gc
import math
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from serving.spec.baseline import BaselineSpec
from serving.spec.model import ModelSpec


def load(spec: BaselineSpec) -> Any:
    """The model on its device, ready to generate; with random weights for `load_format="dummy"`."""
    model = spec.model
    device = "cuda" if model.accelerator == "gpu" else "cpu"
    if device == "cpu":
        torch.set_num_threads(max(1, int(model.num_cpus)))
    else:
        # Beyond its share of a card a baseline runs out of memory, as vLLM would.
        torch.cuda.set_per_process_memory_fraction(min(1.0, model.num_gpus or 1.0))
    options = {"dtype": getattr(torch, model.resolved_dtype), "attn_implementation": spec.attention}
    if model.engine_kwargs.get("load_format") == "dummy":
        with torch.device(device):
            config = AutoConfig.from_pretrained(model.path)
            loaded = AutoModelForCausalLM.from_config(config, **options)
    else:
        loaded = AutoModelForCausalLM.from_pretrained(model.path, **options)
    loaded = loaded.to(device).eval().requires_grad_(False)
    # Its own would fill in what a request leaves open: sampling, and an end at an end token.
    loaded.end_tokens = end_tokens(loaded)
    loaded.generation_config = GenerationConfig(pad_token_id=0, do_sample=False)
    return loaded


def end_tokens(model: Any) -> frozenset[int]:
    """The ids that end an answer, of the generation config or else of the model's."""
    own = model.generation_config.eos_token_id
    ids = model.config.eos_token_id if own is None else own
    return frozenset(() if ids is None else [ids] if isinstance(ids, int) else ids)


def kv_bytes_per_token(model: Any) -> int:
    """Bytes that one token takes in the KV cache: keys and values of every layer and KV head."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    per_value = torch.empty((), dtype=model.dtype).element_size()
    return int(2 * config.num_hidden_layers * kv_heads * head_dim * per_value)


def kv_tokens(spec: ModelSpec, bytes_per_token: int) -> int | None:
    """Tokens that may be in a CPU's KV cache, which has the size of vLLM's; None on a GPU.

    A GPU's own memory is the bound there.
    """
    if spec.accelerator == "gpu":
        return None
    return math.floor(spec.kv_cache_gib * 2**30 / bytes_per_token)


def free_share(spec: ModelSpec) -> float | None:
    """The share of a GPU's free memory that is this baseline's; None for a whole card or a CPU.

    transformers sizes its cache by what the whole card has free, of which others hold a part.
    """
    if spec.accelerator != "gpu" or (spec.num_gpus or 1.0) >= 1.0:
        return None
    total = int(torch.cuda.get_device_properties(0).total_memory)
    used = int(torch.cuda.memory_reserved(0))
    return max(0.0, (spec.num_gpus or 1.0) * total - used) / (total - used)


def free_memory() -> None:
    """Give back what a batch that broke off has left behind."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
