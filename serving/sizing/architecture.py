"""A model's sizes from its config.json: heads, layers and parameters. Nothing is downloaded.

The supported families are decoders with grouped-query attention, a gated MLP or experts, and RMS
norms: Llama, Mistral, Qwen2, Qwen3, Phi-3, Granite, Mixtral, Qwen-MoE and OLMoE. Other families
give None.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BYTES_PER_VALUE = {
    "bfloat16": 2.0,
    "float16": 2.0,
    "half": 2.0,
    "float32": 4.0,
    "float": 4.0,
    "fp8": 1.0,
}
BITS_PER_WEIGHT = {
    "fp8": 8.0,
    "fbgemm_fp8": 8.0,
    "compressed-tensors": 8.0,
    "awq": 4.0,
    "gptq": 4.0,
}
BITS_PER_WEIGHT |= {
    "awq_marlin": 4.0,
    "gptq_marlin": 4.0,
    "bitsandbytes": 4.0,
    "int8": 8.0,
    "modelopt": 8.0,
}
DENSE_FAMILIES = {"llama", "mistral", "qwen2", "qwen3", "phi3", "granite"}
MOE_FAMILIES = {"mixtral", "qwen2_moe", "qwen3_moe", "olmoe"}
FAMILIES_WITH_BIAS = {"qwen2", "qwen2_moe"}
FAMILIES_WITH_HEAD_NORMS = {"qwen3", "qwen3_moe"}
VOCABULARY_MULTIPLE = 64
"""vLLM pads the vocabulary to a multiple of this, so that it can be split over GPUs."""


@dataclass(frozen=True)
class Architecture:
    """The sizes of a decoder.

    ``experts`` is 0 in a dense model. ``intermediate`` is the width of the MLP or of one expert,
    and ``shared`` the width of the expert that every token uses. ``bits`` are those of a quantized
    weight, or None; ``group`` quantized weights share a scale and a zero point.
    """

    kind: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool
    context: int
    experts: int = 0
    experts_per_token: int = 0
    shared: int = 0
    bias: bool = False
    head_norms: bool = False
    bits: float | None = None
    group: int | None = None

    @property
    def padded_vocabulary(self) -> int:
        """Rows of the embedding table in vLLM."""
        return -(-self.vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE

    @property
    def attention(self) -> int:
        """Parameters of the attention projections of one layer."""
        rows = (self.heads + 2 * self.kv_heads) * self.head_dim
        return self.hidden * (rows + self.heads * self.head_dim) + (rows if self.bias else 0)

    @property
    def expert(self) -> int:
        """Parameters of one expert, or of the MLP: gate, up and down projections."""
        return 3 * self.hidden * self.intermediate

    @property
    def router(self) -> int:
        """Parameters of one layer that every GPU holds in full: expert router and norms."""
        gate = self.hidden if self.shared else 0
        norms = 2 * self.hidden + (2 * self.head_dim if self.head_norms else 0)
        return self.experts * self.hidden + gate + norms

    @property
    def embedding(self) -> int:
        """Parameters of the embedding table."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All parameters of the model, as model cards count them."""
        layer = self.attention + max(1, self.experts) * self.expert + self.router
        layer += 3 * self.hidden * self.shared
        head = 0 if self.tied else self.embedding
        return self.layers * layer + self.embedding + head + self.hidden


def read_architecture(path: str | Path) -> Architecture | None:
    """Read a model folder's config.json; None without one, or if its family is not supported."""
    file = Path(path).expanduser() / "config.json"
    if not file.is_file():
        return None
    try:
        return parse_architecture(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # the engine reports what is wrong with it


def parse_architecture(config: Mapping[str, Any]) -> Architecture | None:
    """Build an Architecture from the fields of a config.json; None for other families.

    Raises:
        KeyError: A field is missing that the family always has.
    """
    kind = str(config.get("model_type"))
    if kind not in DENSE_FAMILIES | MOE_FAMILIES:
        return None
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    experts = int(config.get("num_local_experts") or config.get("num_experts") or 0)
    width = config.get("moe_intermediate_size") if experts else None
    bits, group = _quantization(config.get("quantization_config") or {})
    return Architecture(
        kind=kind,
        layers=int(config["num_hidden_layers"]),
        hidden=hidden,
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
        intermediate=int(width or config["intermediate_size"]),
        vocabulary=int(config["vocab_size"]),
        tied=bool(config.get("tie_word_embeddings", False)),
        context=int(config["max_position_embeddings"]),
        experts=experts,
        experts_per_token=int(config.get("num_experts_per_tok") or 0) if experts else 0,
        shared=int(config.get("shared_expert_intermediate_size") or 0) if experts else 0,
        bias=kind in FAMILIES_WITH_BIAS or bool(config.get("attention_bias")),
        head_norms=kind in FAMILIES_WITH_HEAD_NORMS,
        bits=bits,
        group=group,
    )


def _quantization(config: Mapping[str, Any]) -> tuple[float | None, int | None]:
    method = config.get("quant_method")
    if method is None:
        return None, None
    bits = config.get("bits") or config.get("w_bit") or BITS_PER_WEIGHT.get(str(method))
    group = config.get("group_size") or config.get("q_group_size")
    return (None if bits is None else float(bits)), (int(group) if group else None)
