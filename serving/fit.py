"""Does a service fit on the cluster's nodes? Said before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from serving.errors import ResourcesError

if TYPE_CHECKING:
    from serving.spec import ModelSpec, ServiceSpec


def check_fit(spec: ServiceSpec, nodes: list[Mapping[str, Any]] | None = None) -> None:
    """Raise :class:`ResourcesError` if one replica can never be placed on the cluster.

    ``nodes`` are the resources of each node as Ray reports them (``memory`` in bytes); read from
    the connected cluster when absent.
    """
    if nodes is None:
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    model = spec.model
    for name, per_worker in model.bundle.items():
        _check_one(name, per_worker, model.workers, nodes)
    if model.accelerator_type and not any(
        f"accelerator_type:{model.accelerator_type}" in node for node in nodes
    ):
        kinds = sorted({k.split(":")[1] for n in nodes for k in n if k.startswith("accelerator_")})
        raise ResourcesError(
            f"model.accelerator_type = {model.accelerator_type!r}, but the cluster has "
            f"{', '.join(kinds) or 'none'}. Name one of those, or drop the field."
        )
    memory = model.memory_gib or 0.0
    largest = max((float(node.get("memory", 0)) for node in nodes), default=0.0) / 2**30
    if memory > largest:
        raise ResourcesError(
            f"model.memory_gib = {memory:g}, but the largest node of the cluster has "
            f"{largest:.1f} GiB. Lower it, or add a larger node."
        )
    _check_together(model, nodes)


def _check_one(name: str, amount: float, workers: int, nodes: list[Mapping[str, Any]]) -> None:
    if sum(_times(node, {name: amount}) for node in nodes) < workers:
        total = sum(float(node.get(name, 0)) for node in nodes)
        raise ResourcesError(
            f"model.num_{name.lower()}s = {amount:g} for each of {workers} engine worker(s), but "
            f"the cluster has {total:g} {name}s on {len(nodes)} node(s). Lower it, lower the "
            f"parallel sizes, or add nodes."
        )


def _check_together(model: ModelSpec, nodes: list[Mapping[str, Any]]) -> None:
    """Each worker needs all that is its own on one node, and one of them the memory too."""
    kind, memory = f"accelerator_type:{model.accelerator_type}", (model.memory_gib or 0) * 2**30
    able = [node for node in nodes if model.accelerator_type is None or kind in node]
    room = [(_times(node, model.bundle), float(node.get("memory", 0))) for node in able]
    if sum(times for times, _ in room) < model.workers or not any(
        times and memory <= has for times, has in room
    ):
        wanted = {
            "num_cpus": model.bundle["CPU"],
            "num_gpus": model.bundle.get("GPU"),
            "memory_gib": model.memory_gib,
        }
        told = [f"model.{name} = {value:g}" for name, value in wanted.items() if value is not None]
        if model.accelerator_type is not None:
            told.append(f"model.accelerator_type = {model.accelerator_type!r}")
        raise ResourcesError(
            f"{', '.join(told)}: the cluster has enough of each, but not together on one node for "
            f"{model.workers} engine worker(s). Lower one of them, or add nodes."
        )


def _times(node: Mapping[str, Any], bundle: Mapping[str, float]) -> int:
    """How many of these bundles an empty node holds; the margin is for fractions such as 0.1."""
    return min(int(float(node.get(name, 0)) / need + 1e-9) for name, need in bundle.items())
