"""Everything about a service that can be rejected before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serving.cluster import attach
from serving.engine.engine_args import check
from serving.errors import ClusterError, ResourcesError
from serving.sizing import checks
from serving.spec.guardrail import PresidioGuardrail
from serving.spec.model import ModelSpec
from serving.spec.pipeline import PipelineSpec
from serving.spec.service import EndpointSpec


def check_fit(spec: EndpointSpec, nodes: list[Mapping[str, Any]] | None = None) -> None:
    """Raise :class:`ResourcesError` if a replica of a model can never be placed on the cluster.

    ``nodes`` are the resources of each node as Ray reports them (``memory`` in bytes); read from
    the connected cluster when absent.
    """
    if nodes is None:
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for name, cpus in spec.auxiliary_deployments().items():
        if not any(float(node.get("CPU", 0)) >= cpus for node in nodes):
            raise ResourcesError(
                f"{name}.num_cpus = {cpus:g}, but no node of the cluster has as many CPUs. "
                "Lower it, or add a larger node."
            )
    for model in spec.engines:
        _check_model(model, nodes)


def _check_model(model: ModelSpec, nodes: list[Mapping[str, Any]]) -> None:
    for name in ("CPU", "GPU") if model.accelerator == "gpu" else ("CPU",):
        _check_one(
            name, model.worker_resources[name], model.workers * model.data_parallel_size, nodes
        )
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
    checks.check_memory(model, nodes)


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
    memory = (model.memory_gib or 0) * 2**30
    room = [(_times(node, model.worker_resources), float(node.get("memory", 0))) for node in nodes]
    holds = _holds(model, [times for times, _ in room])
    if holds is None and any(times and memory <= has for times, has in room):
        return
    wanted = {
        "num_cpus": model.worker_resources["CPU"],
        "num_gpus": model.worker_resources.get("GPU"),
        "memory_gib": model.memory_gib,
    }
    told = [f"model.{name} = {value:g}" for name, value in wanted.items() if value is not None]
    if model.accelerator_type is not None:
        told.append(f"model.accelerator_type = {model.accelerator_type!r}")
    raise ResourcesError(
        f"{', '.join(told)}: the cluster has enough of each, but not together on one node for "
        f"{model.workers * model.data_parallel_size} engine worker(s)"
        f"{'' if holds is None else holds}. Lower one of them, or add nodes."
    )


def _holds(model: ModelSpec, room: list[int]) -> str | None:
    """Why nodes with room for so many workers each cannot hold a replica; None where they can."""
    workers, largest = model.workers, max(room, default=0)
    if (
        model.placement_strategy == "STRICT_PACK"
        and model.data_parallel_size == 1
        and largest < workers
    ):
        return f", all on one as placement = 'STRICT_PACK' has it: the largest takes {largest}"
    able = sum(times > 0 for times in room)
    if model.placement_strategy == "STRICT_SPREAD" and able < workers:
        return f", each on another as placement = 'STRICT_SPREAD' has it: {able} node(s) take one"
    return "" if sum(room) < workers * model.data_parallel_size else None


def _times(node: Mapping[str, Any], bundle: Mapping[str, float]) -> int:
    """How many of these bundles an empty node holds; the margin is for fractions such as 0.1."""
    return min(int(float(node.get(name, 0)) / need + 1e-9) for name, need in bundle.items())


def check_spec(spec: EndpointSpec) -> None:
    """Everything about a spec that can be refused before anything starts; a SpecError names it."""
    for model in spec.engines:
        check(model)
    guardrail = spec.guardrail if isinstance(spec, PipelineSpec) else None
    if isinstance(guardrail, PresidioGuardrail) and guardrail.recognizers:
        from serving.guardrail import presidio  # Presidio takes seconds to import

        presidio.check_recognizers(guardrail)


def reads_prompts(spec: EndpointSpec) -> bool:
    """Whether the proxy must show each prompt to Serve's router."""
    return not spec.composed and spec.models[0].routing == "prefix_aware"


def check_serve(spec: EndpointSpec, running: dict[str, Any]) -> int:
    """The port of a Serve that already runs, if it can carry this spec."""
    options = running["http_options"]
    for name in ("host", "port"):
        wanted, has = getattr(spec, name), options[name]
        if wanted != has and not (name == "port" and wanted == 0):
            raise ClusterError(
                f"{name} = {wanted!r}, but Ray Serve already runs on this cluster with {name} = "
                f"{has!r}, and it cannot change while it runs. Set {name} = {has!r}, or shut "
                "Serve down first."
            )
    proxies = {attach.actor_class(proxy["actor_name"]) for proxy in running["proxies"].values()}
    if not spec.composed and proxies - {"HAProxyManager"}:
        raise ClusterError(
            "Ray Serve already runs on this cluster without HAProxy, which direct streaming needs "
            "and which cannot be turned on while it runs. Shut Serve down (serve shutdown) and "
            "deploy again, or start it with RAY_SERVE_ENABLE_HA_PROXY=1."
        )
    if reads_prompts(spec):
        _check_forwarding(running)
    return int(options["port"])


def _check_forwarding(running: dict[str, Any]) -> None:
    """Prefix-aware routing on the direct path needs a proxy that shows the router each prompt."""

    def forwards(proxy: Any) -> bool:
        from ray.serve._private import constants

        return bool(constants.RAY_SERVE_INGRESS_REQUEST_ROUTER_FORWARD_BODY)

    for proxy in running["proxies"].values():
        if not attach.ask_actor(proxy["actor_name"], forwards):
            raise ClusterError(
                "model.routing = 'prefix_aware', but Ray Serve already runs on this cluster "
                "without RAY_SERVE_INGRESS_REQUEST_ROUTER_FORWARD_BODY=1, and it cannot change "
                "while it runs. Choose another routing, or shut Serve down first."
            )
