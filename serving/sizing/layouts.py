"""Which TP × PP × replicas fit on a cluster's GPUs, and which to take. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from serving.sizing.architecture import Architecture
from serving.sizing.memory import GIB, UTILIZATION, Layout, Memory, Sizes, gpu_memory

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
"""What nvidia-smi shows of each, in GiB, by Ray's accelerator types; of two, the smaller."""


@dataclass(frozen=True)
class GpuPool:
    """A cluster's GPUs of one type: how many on each node, and the memory of one in GiB."""

    per_node: tuple[int, ...]
    gib: float
    kind: str = "GPU"

    @property
    def count(self) -> int:
        """All of them."""
        return sum(self.per_node)

    def __str__(self) -> str:
        return f"{self.count} {self.kind} of {self.gib:g} GiB on {len(self.per_node)} node(s)"


def gpus_of(nodes: Iterable[Mapping[str, Any]], kind: str | None = None) -> GpuPool | None:
    """The GPUs of the type that most nodes have, or of ``kind``; None where no type is known.

    ``nodes`` are the resources of each node as Ray reports them.
    """
    found: dict[str, list[int]] = {}
    for node in nodes:
        for name in node:
            known = name.removeprefix("accelerator_type:")
            if name != known and known in GPU_GIB and node.get("GPU", 0) >= 1:
                found.setdefault(known, []).append(int(node["GPU"]))
    chosen = kind or max(found, key=lambda name: sum(found[name]), default=None)
    return GpuPool(tuple(found[chosen]), GPU_GIB[chosen], chosen) if chosen in found else None


@dataclass(frozen=True)
class Plan:
    """One way to lay a model out: a replica's layout, how many replicas, what a GPU then holds.

    ``problem`` says why it cannot be, if so.
    """

    layout: Layout
    replicas: int
    memory: Memory
    context: int
    problem: str | None = field(default=None, compare=False)

    @property
    def sequences(self) -> int:
        """Sequences of full length whose KV cache all replicas hold at once."""
        return self.replicas * (self.memory.tokens // self.context)


def divides(model: Architecture, layout: Layout, partition: str | None = None) -> str | None:
    """Why the model cannot be split so, in a few words; None where it can.

    ``partition`` is vLLM's own ``VLLM_PP_LAYER_PARTITION``, for stages of unequal layers.
    """
    tensor, pipeline = layout.tensor, layout.pipeline
    for what, count in (("attention heads", model.heads), ("MLP columns", model.intermediate)):
        if count % tensor:
            return f"tensor_parallel_size = {tensor} does not divide the {count} {what}"
    if model.kv_heads % tensor and tensor % model.kv_heads:
        return f"tensor_parallel_size = {tensor} does not divide the {model.kv_heads} KV heads"
    if pipeline > model.layers:
        return f"pipeline_parallel_size = {pipeline} exceeds the {model.layers} layers"
    if model.layers % pipeline and partition is None:
        return f"pipeline_parallel_size = {pipeline} does not divide the {model.layers} layers"
    spread = layout.tensor * layout.data
    if layout.expert and spread > model.experts:
        return f"expert parallelism over {spread} GPUs has too few of {model.experts} experts"
    return None


def plans(
    model: Architecture,
    gpus: GpuPool,
    *,
    context: int,
    sizes: Sizes = Sizes(),  # noqa: B008  (frozen)
    utilization: float = UTILIZATION,
) -> list[Plan]:
    """Every layout that divides the model and uses no more GPUs than there are, small ones first.

    Each has as many replicas as fit; one whose weights, or one sequence of ``context`` tokens, do
    not fit says so in ``problem``. A tensor-parallel group stays on one node.
    """
    found = []
    for tensor in range(1, max(gpus.per_node, default=0) + 1):
        groups = sum(count // tensor for count in gpus.per_node)
        for pipeline in range(1, groups + 1):
            layout = Layout(tensor, pipeline)
            if divides(model, layout) is None:
                memory = gpu_memory(model, layout, sizes, gpus.gib, utilization=utilization)
                problem = _problem(memory, context)
                found.append(Plan(layout, groups // pipeline, memory, context, problem))
    return sorted(found, key=lambda plan: (plan.layout.gpus, plan.layout.pipeline))


def _problem(memory: Memory, context: int) -> str | None:
    """Why a GPU cannot hold this, with the numbers."""
    if memory.cache <= 0:
        beside = (memory.activations + memory.overhead) / GIB
        return (
            f"{memory.weights / GIB:.1f} GiB of weights and {beside:.1f} GiB of activations and "
            f"CUDA a GPU exceed the {memory.budget / GIB:.1f} GiB that vLLM may use of it"
        )
    if memory.tokens < context:
        return (
            f"beside {memory.weights / GIB:.1f} GiB of weights a GPU has room for the KV cache of "
            f"{memory.tokens} tokens, and one sequence has {context}"
        )
    return None


@dataclass(frozen=True)
class Recommendation:
    """The plan to take, if any fits, and why."""

    plan: Plan | None
    why: str


def recommend(found: list[Plan], concurrency: int) -> Recommendation:
    """The smallest replicas that hold ``concurrency`` sequences at once, as many as there is room.

    Replicas do not talk to each other; the GPUs of one replica do at every layer. So a GPU more in
    a replica must be needed: for the weights, or for KV cache that copies of them would take.
    """
    fitting = [plan for plan in found if plan.problem is None]
    if not fitting:
        last = found[-1].problem if found else "no layout divides the model on these GPUs"
        return Recommendation(None, f"It does not fit: {last}.")
    enough = [plan for plan in fitting if plan.sequences >= concurrency]
    if not enough:
        best = max(fitting, key=lambda plan: (plan.sequences, -plan.layout.gpus))
        return Recommendation(
            best,
            f"{_told(best)}: the most that these GPUs hold at once, of {concurrency} asked for; "
            "the others wait, or need more GPUs or a shorter context.",
        )
    best = enough[0]
    smaller = [plan for plan in found if plan.layout.gpus < best.layout.gpus]
    why = "nothing smaller is needed, and replicas need not talk to each other"
    if smaller:
        before = max(smaller, key=lambda plan: (plan.sequences, -plan.layout.pipeline))
        why = f"{before.layout} does not do: " + (
            before.problem or f"its {before.replicas} replica(s) hold {before.sequences}"
        )
    return Recommendation(best, f"{_told(best)}, of {concurrency} asked for; {why}.")


def _told(plan: Plan) -> str:
    return (
        f"{plan.layout} × {plan.replicas} replica(s) hold {plan.sequences} sequences of "
        f"{plan.context} tokens at once"
    )
