"""Which layouts of a model fit on GPUs, as a table. `serving.sizing` does the arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.models.embedded import tiny_model_path
from serving.sizing.architecture import Architecture, parse_architecture, read_architecture
from serving.sizing.layouts import GPU_GIB, GpuPool, Plan, Recommendation, plans, recommend
from serving.sizing.memory import GIB, DataTypes
from workbench.errors import SettingError

if TYPE_CHECKING:
    import pandas as pd

_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}
_LARGE = {"num_hidden_layers": 80, "hidden_size": 8192, "num_attention_heads": 64}
_MIXTRAL = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "Llama-3.1-8B": _LLAMA,
    "Llama-3.1-70B": _LLAMA | _LARGE | {"intermediate_size": 28672},
    "Mixtral-8x7B": _LLAMA | _MIXTRAL | {"vocab_size": 32000, "max_position_embeddings": 32768},
}
"""The published sizes of some models, to plan without their files."""


@dataclass(frozen=True)
class LayoutPlans:
    """Every layout of a model on some GPUs, and the recommended one for a concurrency."""

    model: Architecture
    gpus: GpuPool
    plans: list[Plan]
    concurrency: int
    advice: Recommendation

    def frame(self) -> pd.DataFrame:
        """Return one row per layout: GiB on the fullest GPU, replicas, concurrent sequences."""
        import pandas as pd

        return pd.DataFrame([_row(plan) for plan in self.plans])


def plan_layouts(
    model: str | Mapping[str, Any],
    gpus: Mapping[str, Any],
    *,
    context: int,
    concurrency: int,
    quantization: str | None = None,
    kv_cache_dtype: str = "auto",
) -> LayoutPlans:
    """Return the layouts of `model` on `gpus`, and the recommended one.

    Args:
        model: "tiny", a folder, one of `SHAPES`, or the fields of a config.json.
        gpus: `kind` (Ray's accelerator type), `per_node` (GPUs of each node) and, for a kind that
            is not in `GPU_GIB`, `gib`.
        context: Tokens of one sequence.
        concurrency: Sequences at the same time.
        quantization: Of the weights, as in vLLM.
        kv_cache_dtype: Of the KV cache, as in vLLM.

    Raises:
        SettingError: If the sizes of the model or the memory of the GPU are unknown.
    """
    shape = _architecture(model)
    kind = str(gpus.get("kind", "GPU"))
    gib = gpus.get("gib") or GPU_GIB.get(kind)
    if gib is None:
        raise SettingError(
            f"gpus.kind is {kind!r}, whose memory is unknown: give gib, or one of {_kinds()}"
        )
    per_node: Sequence[int] = gpus["per_node"]
    pool = GpuPool(tuple(int(count) for count in per_node), float(gib), kind)
    types = DataTypes(quantization=quantization, kv_dtype=kv_cache_dtype)
    layouts = plans(shape, pool, context=context, types=types)
    return LayoutPlans(shape, pool, layouts, concurrency, recommend(layouts, concurrency))


def _architecture(model: str | Mapping[str, Any]) -> Architecture:
    if not isinstance(model, str):
        shape = parse_architecture(model)
    elif model in SHAPES:
        shape = parse_architecture(SHAPES[model])
    else:
        shape = read_architecture(tiny_model_path() if model == "tiny" else Path(model))
    if shape is None:
        raise SettingError(
            f"model is {model!r}, whose sizes are unknown: give 'tiny', a folder, the fields of a "
            f"config.json, or one of {', '.join(SHAPES)}"
        )
    return shape


def _kinds() -> str:
    return ", ".join(sorted(GPU_GIB))


def _row(plan: Plan) -> dict[str, Any]:
    memory = plan.memory
    return {
        "layout": str(plan.layout),
        "replicas": plan.replicas,
        "weights_gib": round(memory.weights / GIB, 2),
        "activations_gib": round(memory.activations / GIB, 2),
        "kv_cache_gib": round(max(0.0, memory.cache) / GIB, 2),
        "sequences": plan.sequences if plan.problem is None else 0,
        "fits": plan.problem is None,
        "why_not": plan.problem or "",
    }
