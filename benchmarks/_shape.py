"""The shape of a real model without its weights, for hosts without a model hub.

Speed does not depend on the values of the weights, which the engine sets at random with
`load_format="dummy"`. The tokenizer is the embedded one with a word for every further id, so that
any sampled token is text.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from serving.models.embedded import tiny_model_path

LLAMA_3_1_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "dtype": "bfloat16",
}

SMALL_MOE: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "hidden_size": 2048,
    "intermediate_size": 7168,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 8192,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
"""Eight experts of 88 MB in each of 16 layers: 11.7 GB, of which 96 % are expert weights."""


def write_shape(folder: Path, config: dict[str, Any] = LLAMA_3_1_8B) -> Path:
    """Write the configuration and a tokenizer for a model of this shape, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny = tiny_model_path()
    for name in ("tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(tiny / name, folder)
    special = json.loads((tiny / "config.json").read_text())
    ids = {name: value for name, value in special.items() if name.endswith("_token_id")}
    (folder / "config.json").write_text(json.dumps(config | ids, indent=2))
    tokenizer = json.loads((tiny / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    # No merge produces these words, so no prompt contains one.
    vocabulary |= {f"\u0120t{i}": i for i in range(len(vocabulary), config["vocab_size"])}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def llama_parameters(config: dict[str, Any]) -> tuple[int, int]:
    """Return the parameters of all layers, and of one of the two embeddings (input, output)."""
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    heads, kv_heads, size = (
        config[name] for name in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
    attention = hidden * size * (2 * heads + 2 * kv_heads)
    mlp = 3 * hidden * config["intermediate_size"]
    return layers * (attention + mlp + 2 * hidden) + hidden, config["vocab_size"] * hidden


if __name__ == "__main__":
    print(write_shape(Path(sys.argv[1])))
