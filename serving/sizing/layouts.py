"""Layouts of a model on a cluster's GPUs: which ones fit, and which one to choose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from serving.sizing.architecture import Architecture
from serving.sizing.memory import GIB, UTILIZATION, DataTypes, GpuMemory, Layout, gpu_memory

GPU_GIB = {
    "T4": 15.0,
    "P100": 16.0,
    "V100": 16.0,
    "L4": 22.5,
    "A10G": 22.5,
    "A100-40G": 40.0,
    "L40S": 45.0,
    "A100": 40.0,
    "A100-80G": 80.0,
    "H100": 79.6,
    "H20": 95.6,
    "RTX-PRO-6000": 95.6,
    "H200": 140.4,
    "B200": 179.1,
    "B300": 268.6,
}
"""Memory in GiB as nvidia-smi reports it, by Ray's accelerator type; the smaller of variants."""


@dataclass(frozen=True)
class GpuPool:
    """GPUs of one type in a cluster: the number on each node, and the GiB of memory of each."""

    per_node: tuple[int, ...]
    gib: float
    kind: str = "GPU"

    @property
    def count(self) -> int:
        """GPUs on all nodes together."""
        return sum(self.per_node)

    def __str__(self) -> str:
        return f"{self.count} {self.kind} of {self.gib:g} GiB on {len(self.per_node)} node(s)"


def gpus_of(nodes: Iterable[Mapping[str, Any]], kind: str | None = None) -> GpuPool | None:
    """Return the GPUs of one type.

    Args:
        nodes: Resources of each node, as Ray reports them.
        kind: Ray's accelerator type; default: the type of most GPUs.

    Returns:
        The GPUs, or None if there are none of a known type.
    """
    counts: dict[str, list[int]] = {}
    for node in nodes:
        for name in node:
            accelerator = name.removeprefix("accelerator_type:")
            if name != accelerator and accelerator in GPU_GIB and node.get("GPU", 0) >= 1:
                counts.setdefault(accelerator, []).append(int(node["GPU"]))
    chosen = kind or max(counts, key=lambda name: sum(counts[name]), default=None)
    return GpuPool(tuple(counts[chosen]), GPU_GIB[chosen], chosen) if chosen in counts else None


@dataclass(frozen=True)
class Plan:
    """A layout of a replica, the number of replicas, and the memory of each GPU.

    ``problem`` says why the layout does not fit, or is None.
    """

    layout: Layout
    replicas: int
    memory: GpuMemory
    context: int
    problem: str | None = field(default=None, compare=False)

    @property
    def sequences(self) -> int:
        """Sequences of full context length that all replicas hold at once."""
        return self.replicas * (self.memory.tokens // self.context)


def why_not_divisible(
    model: Architecture, layout: Layout, partition: str | None = None
) -> str | None:
    """Return why a model cannot be split by a layout, or None if it can.

    Args:
        model: The model's sizes.
        layout: The parallel sizes.
        partition: vLLM's ``VLLM_PP_LAYER_PARTITION``, for stages with different numbers of layers.
    """
    tensor, pipeline = layout.tensor, layout.pipeline
    for parts, count in (("attention heads", model.heads), ("MLP columns", model.intermediate)):
        if count % tensor:
            return f"tensor_parallel_size must divide the {count} {parts}, got {tensor}"
    if model.kv_heads % tensor and tensor % model.kv_heads:
        return f"tensor_parallel_size must divide the {model.kv_heads} KV heads, got {tensor}"
    if pipeline > model.layers:
        return f"pipeline_parallel_size must be at most the {model.layers} layers, got {pipeline}"
    if model.layers % pipeline and partition is None:
        return f"pipeline_parallel_size must divide the {model.layers} layers, got {pipeline}"
    gpus = layout.tensor * layout.data
    if layout.expert and gpus > model.experts:
        return f"expert_parallel must use at most {model.experts} GPUs, one per expert, got {gpus}"
    return None


def plans(
    model: Architecture,
    gpus: GpuPool,
    *,
    context: int,
    types: DataTypes = DataTypes(),  # noqa: B008  (frozen)
    utilization: float = UTILIZATION,
) -> list[Plan]:
    """Return every layout that can split the model over the GPUs, the smallest first.

    Each plan has as many replicas as the GPUs allow. If the weights or one sequence do not fit, its
    ``problem`` gives the reason. A tensor-parallel group stays on one node.

    Args:
        model: The model's sizes.
        gpus: The cluster's GPUs.
        context: Tokens in a sequence.
        types: Data types of weights and KV cache.
        utilization: Share of a GPU's memory that vLLM may use, 0 to 1.
    """
    plans = []
    for tensor in range(1, max(gpus.per_node, default=0) + 1):
        groups = sum(count // tensor for count in gpus.per_node)
        for pipeline in range(1, groups + 1):
            layout = Layout(tensor, pipeline)
            if why_not_divisible(model, layout) is None:
                memory = gpu_memory(model, layout, types, gpus.gib, utilization=utilization)
                problem = _problem(memory, context)
                plans.append(Plan(layout, groups // pipeline, memory, context, problem))
    return sorted(plans, key=lambda plan: (plan.layout.gpus, plan.layout.pipeline))


def _problem(memory: GpuMemory, context: int) -> str | None:
    """Return why a GPU cannot hold the model, with the numbers, or None if it can."""
    if memory.cache <= 0:
        other = (memory.activations + memory.overhead) / GIB
        return (
            f"{memory.weights / GIB:.1f} GiB of weights and {other:.1f} GiB for activations and "
            f"CUDA per GPU exceed the {memory.budget / GIB:.1f} GiB that vLLM may use"
        )
    if memory.tokens < context:
        return (
            f"with {memory.weights / GIB:.1f} GiB of weights, a GPU has KV cache for "
            f"{memory.tokens} tokens, but one sequence has {context}"
        )
    return None


@dataclass(frozen=True)
class Recommendation:
    """The plan to choose, or None if no plan fits, and the reason."""

    plan: Plan | None
    reason: str


def recommend(plans: list[Plan], concurrency: int) -> Recommendation:
    """Choose the smallest replicas that hold ``concurrency`` sequences at once.

    Replicas work independently, while the GPUs of one replica communicate in every layer. A larger
    replica is better only if it is needed: for the weights, or for the KV cache that further copies
    of the weights would take.
    """
    fitting = [plan for plan in plans if plan.problem is None]
    if not fitting:
        last = plans[-1].problem if plans else "no layout can split the model over these GPUs"
        return Recommendation(None, f"It does not fit: {last}.")
    enough = [plan for plan in fitting if plan.sequences >= concurrency]
    if not enough:
        best = max(fitting, key=lambda plan: (plan.sequences, -plan.layout.gpus))
        return Recommendation(
            best,
            f"{_label(best)}, the most that these GPUs can hold, of {concurrency} requested; the "
            "others wait. Add GPUs or shorten the context.",
        )
    best = enough[0]
    smaller = [plan for plan in plans if plan.layout.gpus < best.layout.gpus]
    reason = "it is the smallest layout, and replicas work independently"
    if smaller:
        before = max(smaller, key=lambda plan: (plan.sequences, -plan.layout.pipeline))
        reason = f"{before.layout} is not enough, because " + (
            before.problem or f"its {before.replicas} replica(s) hold {before.sequences}"
        )
    return Recommendation(best, f"{_label(best)}, of {concurrency} requested; {reason}.")


def _label(plan: Plan) -> str:
    return (
        f"{plan.layout} × {plan.replicas} replica(s) hold {plan.sequences} sequences of "
        f"{plan.context} tokens at once"
    )
