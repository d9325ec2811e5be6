"""LoRA adapters with random weights, in PEFT's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RANK = 8


def write_adapter(model: Path, folder: Path, **fields: Any) -> None:
    """Write an adapter that changes the queries of every attention layer of a Llama.

    Its weights are large, so that its answers differ from those of the model. ``fields`` replace
    those of its configuration.
    """
    import torch
    from safetensors.torch import save_file

    config = json.loads((model / "config.json").read_text())
    hidden = config["hidden_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    random = torch.Generator().manual_seed(0)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        weights[f"{name}.lora_A.weight"] = torch.randn(RANK, hidden, generator=random)
        weights[f"{name}.lora_B.weight"] = torch.randn(queries, RANK, generator=random)
    save_file(weights, folder / "adapter_model.safetensors")
    adapter = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": ["q_proj"],
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(adapter | fields))
