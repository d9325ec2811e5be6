"""How much memory a model takes on each GPU: weights, KV cache, activations. Pure arithmetic.

The formulas follow how vLLM splits a model. Tensor parallelism splits heads, MLP and vocabulary
and copies norms and routers; KV heads are copied where there are fewer of them than GPUs. Pipeline
parallelism splits layers. Experts are split over tensor- times data-parallel GPUs, whole ones with
expert parallelism and slices of all without; the rest is copied by data parallelism.
"""

from __future__ import annotations

from dataclasses import dataclass

from serving.sizing.architecture import BITS, BYTES, Architecture

GIB = 2**30
BLOCK = {"cpu": 128, "gpu": 16}
"""Tokens in a block of the KV cache, by vLLM's own default."""
UTILIZATION = 0.92
"""The share of a GPU's memory that vLLM takes by default."""
OVERHEAD_GIB = 1.5
"""A process's CUDA context and its CUDA graphs: an allowance, not a measurement."""
BATCHED_TOKENS = 8192
SEQUENCES = 256


@dataclass(frozen=True)
class Layout:
    """How one replica is spread over GPUs."""

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
class Sizes:
    """Types: of weights and activations, of the KV cache, of quantized weights (``bits``)."""

    dtype: str = "bfloat16"
    kv_dtype: str = "auto"
    quantization: str | None = None

    @property
    def weight_bytes(self) -> float:
        """Bytes of one weight or activation that is not quantized."""
        return BYTES.get(self.dtype, 2.0)

    @property
    def kv_bytes(self) -> float:
        """Bytes of one element of the KV cache."""
        return self.weight_bytes if self.kv_dtype == "auto" else BYTES.get(self.kv_dtype[:3], 2.0)

    def linear_bytes(self, model: Architecture) -> float:
        """Bytes of one weight of a layer's projections; scales and zeros of its group included."""
        bits = BITS.get(self.quantization or "", model.bits)
        if bits is None:
            return self.weight_bytes
        group = model.group if bits < 8 else None
        return (bits + (16 + bits) / group) / 8 if group else bits / 8


def weight_bytes(model: Architecture, layout: Layout, sizes: Sizes) -> float:
    """Bytes of weights on the fullest GPU."""
    stages = range(layout.pipeline)
    return max(_stage_bytes(model, layout, sizes, stage) for stage in stages)


def _stage_bytes(model: Architecture, layout: Layout, sizes: Sizes, stage: int) -> float:
    tensor, linear = layout.tensor, sizes.linear_bytes(model)
    # Projections and biases of copied KV heads are on each GPU.
    copies = max(1, tensor // model.kv_heads)
    kv = 2 * model.kv_heads * model.head_dim * (model.hidden + bool(model.bias))
    attention = (model.attention + (copies - 1) * kv) / tensor
    experts = max(1, model.experts) * model.expert / tensor
    if model.experts:
        experts /= layout.data
    shared = 3 * model.hidden * model.shared / tensor
    layer = (attention + experts + shared) * linear + model.router * sizes.weight_bytes
    ends = _ends(model, layout, stage) * sizes.weight_bytes
    return layers_of_stage(model.layers, layout.pipeline)[stage] * layer + ends


def _ends(model: Architecture, layout: Layout, stage: int) -> float:
    """Parameters of the embedding, the last norm and the head that this stage holds."""
    table = model.padded_vocabulary * model.hidden / layout.tensor
    first, last = stage == 0, stage == layout.pipeline - 1
    tables = int(first or (last and model.tied)) + int(last and not model.tied)
    return tables * table + (model.hidden if last else 0)


def layers_of_stage(layers: int, stages: int) -> list[int]:
    """Layers of each pipeline stage as vLLM deals them out: what is left over goes to the
    last but one and those before it, since the last stage has the head as well.
    """
    each, left = divmod(layers, stages)
    dealt = [each] * stages
    for i in range(2, left + 2):
        dealt[-i] += 1
    return dealt


def kv_token_bytes(model: Architecture, layout: Layout, sizes: Sizes) -> float:
    """Bytes of KV cache of one token on the GPU with the most layers: a key and a value a head."""
    heads = max(1, model.kv_heads // layout.tensor)
    layers = max(layers_of_stage(model.layers, layout.pipeline))
    return 2 * layers * heads * model.head_dim * sizes.kv_bytes


def blocks(cache_bytes: float, token_bytes: float, block: int) -> int:
    """Blocks of ``block`` tokens that fit into a KV cache of so many bytes a GPU."""
    return int(cache_bytes // (block * token_bytes))


def activation_bytes(
    model: Architecture,
    layout: Layout,
    sizes: Sizes,
    batched_tokens: int = BATCHED_TOKENS,
    sequences: int = SEQUENCES,
) -> float:
    """About the most that one step needs beside weights and cache, on one GPU.

    The widest moment of a layer (hidden state, residual, gate and up, their product) for every
    token of a step, and the logits of every sequence twice, in 32 bits. An estimate: vLLM measures
    it when it starts.
    """
    width = model.intermediate * max(1, model.experts_per_token) / layout.tensor
    step = batched_tokens * (4 * model.hidden + 3 * width) * sizes.weight_bytes
    return step + 2 * sequences * model.vocabulary * 4


@dataclass(frozen=True)
class Memory:
    """What one GPU holds, in bytes. ``cache`` is what is left for KV, below 0 where none is."""

    budget: float
    weights: float
    activations: float
    overhead: float
    token: float
    block: int

    @property
    def cache(self) -> float:
        """What is left for the KV cache."""
        return self.budget - self.weights - self.activations - self.overhead

    @property
    def tokens(self) -> int:
        """Tokens whose keys and values fit, in whole blocks."""
        return max(0, blocks(self.cache, self.token, self.block)) * self.block


def gpu_memory(
    model: Architecture,
    layout: Layout,
    sizes: Sizes,
    gpu_gib: float,
    *,
    utilization: float = UTILIZATION,
    batched_tokens: int = BATCHED_TOKENS,
    sequences: int = SEQUENCES,
) -> Memory:
    """The memory of the fullest GPU of a replica laid out so."""
    return Memory(
        budget=gpu_gib * GIB * utilization,
        weights=weight_bytes(model, layout, sizes),
        activations=activation_bytes(model, layout, sizes, batched_tokens, sequences),
        overhead=OVERHEAD_GIB * GIB,
        token=kv_token_bytes(model, layout, sizes),
        block=BLOCK["gpu"],
    )
