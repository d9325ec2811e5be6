"""Memory that a model needs on each GPU: weights, KV cache and activations.

The formulas follow how vLLM splits a model:

- Tensor parallelism splits heads, MLP and vocabulary, and copies norms and expert routers. KV heads
  are copied where there are fewer of them than GPUs.
- Pipeline parallelism splits layers.
- Experts are split over tensor- times data-parallel GPUs: as whole experts with expert parallelism,
  as slices of every expert without. Data parallelism copies everything else.
"""

from __future__ import annotations

from dataclasses import dataclass

from serving.sizing.architecture import BITS_PER_WEIGHT, BYTES_PER_VALUE, Architecture

GIB = 2**30
BLOCK_TOKENS = {"cpu": 128, "gpu": 16}
"""Tokens in a block of the KV cache: vLLM's default by device type."""

UTILIZATION = 0.92
"""Share of a GPU's memory that vLLM uses by default."""

OVERHEAD_GIB = 1.5
"""Allowance, in GiB, for the CUDA context and CUDA graphs of a process; not measured."""

BATCHED_TOKENS = 8192
"""Tokens in the largest step, for the estimate of activations."""

SEQUENCES = 256
"""Sequences in the largest step, for the estimate of activations."""


@dataclass(frozen=True)
class Layout:
    """The split of one replica over GPUs: parallel sizes, and whether experts stay whole."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    expert: bool = False

    @property
    def gpus(self) -> int:
        """GPUs of one replica."""
        return self.tensor * self.pipeline * self.data

    def __str__(self) -> str:
        parts = [f"TP {self.tensor}"]
        parts += [f"PP {self.pipeline}"] if self.pipeline > 1 else []
        parts += [f"DP {self.data}"] if self.data > 1 else []
        return " × ".join(parts) + (" with EP" if self.expert else "")


@dataclass(frozen=True)
class DataTypes:
    """Data types of weights and activations, of the KV cache, and of quantized weights."""

    dtype: str = "bfloat16"
    kv_dtype: str = "auto"
    quantization: str | None = None

    @property
    def weight_bytes(self) -> float:
        """Bytes of one weight or activation without quantization."""
        return BYTES_PER_VALUE.get(self.dtype, 2.0)

    @property
    def kv_bytes(self) -> float:
        """Bytes of one value in the KV cache."""
        if self.kv_dtype == "auto":
            return self.weight_bytes
        return BYTES_PER_VALUE.get(self.kv_dtype[:3], 2.0)

    def linear_bytes(self, model: Architecture) -> float:
        """Return the bytes of one projection weight, with its part of the scale and zero point."""
        bits = BITS_PER_WEIGHT.get(self.quantization or "", model.bits)
        if bits is None:
            return self.weight_bytes
        group = model.group if bits < 8 else None
        return (bits + (16 + bits) / group) / 8 if group else bits / 8


def weight_bytes(model: Architecture, layout: Layout, types: DataTypes) -> float:
    """Return the bytes of weights on the GPU that holds the most."""
    stages = range(layout.pipeline)
    return max(_stage_bytes(model, layout, types, stage) for stage in stages)


def _stage_bytes(model: Architecture, layout: Layout, types: DataTypes, stage: int) -> float:
    tensor, linear = layout.tensor, types.linear_bytes(model)
    # Copied KV heads have their projections and biases on each GPU.
    copies = max(1, tensor // model.kv_heads)
    kv = 2 * model.kv_heads * model.head_dim * (model.hidden + bool(model.bias))
    attention = (model.attention + (copies - 1) * kv) / tensor
    experts = max(1, model.experts) * model.expert / tensor
    if model.experts:
        experts /= layout.data
    shared = 3 * model.hidden * model.shared / tensor
    layer = (attention + experts + shared) * linear + model.router * types.weight_bytes
    tables = _table_parameters(model, layout, stage) * types.weight_bytes
    return layers_of_stage(model.layers, layout.pipeline)[stage] * layer + tables


def _table_parameters(model: Architecture, layout: Layout, stage: int) -> float:
    """Return the parameters of embedding, last norm and output head that a stage holds."""
    table = model.padded_vocabulary * model.hidden / layout.tensor
    first, last = stage == 0, stage == layout.pipeline - 1
    tables = int(first or (last and model.tied)) + int(last and not model.tied)
    return tables * table + (model.hidden if last else 0)


def layers_of_stage(layers: int, stages: int) -> list[int]:
    """Return the number of layers in each pipeline stage, as vLLM assigns them.

    The remainder goes to the second-to-last stage and those before it, because the last stage also
    has the output head.
    """
    each, remainder = divmod(layers, stages)
    counts = [each] * stages
    for i in range(2, remainder + 2):
        counts[-i] += 1
    return counts


def kv_token_bytes(model: Architecture, layout: Layout, types: DataTypes) -> float:
    """Return the bytes of KV cache per token, on the GPU with the most layers."""
    heads = max(1, model.kv_heads // layout.tensor)
    layers = max(layers_of_stage(model.layers, layout.pipeline))
    return 2 * layers * heads * model.head_dim * types.kv_bytes


def blocks(cache_bytes: float, token_bytes: float, block: int) -> int:
    """Return how many blocks of ``block`` tokens fit into a GPU's KV cache of ``cache_bytes``."""
    return int(cache_bytes // (block * token_bytes))


def activation_bytes(
    model: Architecture,
    layout: Layout,
    types: DataTypes,
    batched_tokens: int = BATCHED_TOKENS,
    sequences: int = SEQUENCES,
) -> float:
    """Estimate the bytes that the largest step needs besides weights and KV cache, on one GPU.

    They are the widest point of a layer (hidden state, residual, gate, up and their product) for
    every token of the step, and the logits of every sequence twice in 32 bits. vLLM measures the
    real number when it starts.
    """
    width = model.intermediate * max(1, model.experts_per_token) / layout.tensor
    step = batched_tokens * (4 * model.hidden + 3 * width) * types.weight_bytes
    return step + 2 * sequences * model.vocabulary * 4


@dataclass(frozen=True)
class GpuMemory:
    """Memory of one GPU, in bytes.

    ``token`` is the KV cache of one token in bytes, and ``block`` the tokens in a cache block.
    """

    budget: float
    weights: float
    activations: float
    overhead: float
    token: float
    block: int

    @property
    def cache(self) -> float:
        """Bytes left for the KV cache, negative if the rest does not fit."""
        return self.budget - self.weights - self.activations - self.overhead

    @property
    def tokens(self) -> int:
        """Tokens that fit into the KV cache, in whole blocks."""
        return max(0, blocks(self.cache, self.token, self.block)) * self.block


def gpu_memory(
    model: Architecture,
    layout: Layout,
    types: DataTypes,
    gpu_gib: float,
    *,
    utilization: float = UTILIZATION,
    batched_tokens: int = BATCHED_TOKENS,
    sequences: int = SEQUENCES,
) -> GpuMemory:
    """Return the memory of the GPU of a replica that holds the most."""
    return GpuMemory(
        budget=gpu_gib * GIB * utilization,
        weights=weight_bytes(model, layout, types),
        activations=activation_bytes(model, layout, types, batched_tokens, sequences),
        overhead=OVERHEAD_GIB * GIB,
        token=kv_token_bytes(model, layout, types),
        block=BLOCK_TOKENS["gpu"],
    )
