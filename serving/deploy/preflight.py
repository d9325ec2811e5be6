"""Every check that can reject a service before anything starts.

- :func:`check_spec` needs only the specification.
- :func:`check_manifest` also asks whether a file can describe it.
- :func:`check_resources` compares it with the nodes of a cluster.
- :func:`check_running_serve` compares it with the options of a Serve that runs already.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any

from serving.compat.ray import HAPROXY_ACTOR, actor_class, forwards_bodies, proxy_variable
from serving.compat.variables import FORWARD_BODY, HA_PROXY
from serving.deploy.adapter_files import adapter_paths, check_adapters
from serving.deploy.arguments import tenants_from
from serving.deploy.engine_kwargs import check_engine_kwargs, check_files, local_paths
from serving.deploy.model_files import check_model_files
from serving.engine.frontend import choose_frontend
from serving.errors import ClusterError, MissingPackageError, ResourcesError, SpecError
from serving.proxy.wrapper import PER_ADDRESS_VARIABLE
from serving.sizing import checks
from serving.sizing.memory import weight_bytes
from serving.spec.baseline import BaselineSpec
from serving.spec.disaggregated import PACKAGES
from serving.spec.guardrail import PresidioGuardrail
from serving.spec.model import KV_AWARE, READS_PROMPTS, ModelSpec, is_local
from serving.spec.pipeline import PipelineSpec
from serving.spec.service import EndpointSpec, ServiceSpec

PROCESSES_GIB = 3.5
"""Memory of a CPU replica's three processes, without weights and KV cache."""


def check_spec(spec: EndpointSpec) -> None:
    """Run every check that needs only the specification.

    Raises:
        SpecError: An engine argument, a parallel size, the KV cache or a recognizer is invalid.
        ModelNotFoundError: A local path holds no model, or a damaged one.
        MissingPackageError: vLLM is not installed here, or the package that a routing needs.
    """
    check_routing(spec)
    if any(model.routing == KV_AWARE for model in spec.models) and not find_spec("dynamo"):
        raise MissingPackageError(
            "model.routing = 'kv_aware' needs the package 'ai-dynamo', which is not installed. "
            "Install it: pip install ai-dynamo, or choose another routing."
        )
    check_connector(spec)
    for model in spec.engines:
        check_model(model)
    guardrail = spec.guardrail if isinstance(spec, PipelineSpec) else None
    if isinstance(guardrail, PresidioGuardrail) and guardrail.recognizers:
        from serving.guardrail import presidio  # Presidio takes seconds to import.

        presidio.check_recognizers(guardrail)


def check_routing(spec: EndpointSpec) -> None:
    """Check that the policy of every model can choose its replicas.

    Raises:
        SpecError: KV-aware routing is not possible for this specification.
    """
    if all(model.routing != KV_AWARE for model in spec.engines):
        return
    if spec.composed:
        raise SpecError(
            "model.routing = 'kv_aware' needs a single model with scaling.min_replicas of at least "
            "1, because Ray Serve's router is then in front of its replicas. Choose another "
            "routing."
        )
    if isinstance(spec, BaselineSpec):
        raise SpecError(
            "model.routing = 'kv_aware' needs vLLM, which a baseline does not use. Choose another "
            "routing."
        )


def check_connector(spec: EndpointSpec) -> None:
    """Check that the package of a disaggregated model's connector is installed.

    Raises:
        MissingPackageError: It is not.
    """
    split = spec.model.disaggregated if isinstance(spec, ServiceSpec) else None
    module, package = PACKAGES.get(split.connector, ("", "")) if split else ("", "")
    if split and module and not find_spec(module):
        raise MissingPackageError(
            f"model.disaggregated.connector = {split.connector!r} needs the package {package!r}, "
            f"which is not installed. Install it: pip install {package}, or choose another "
            "connector."
        )


def check_model(model: ModelSpec) -> None:
    """Check one model of a specification; raises as :func:`check_spec` does."""
    check_engine_kwargs(model)
    choose_frontend(model)
    check_files(model)
    check_model_files(model)
    check_adapters(model)
    checks.check_parallel(model)
    checks.check_cache(model)


def check_manifest(spec: EndpointSpec, callers: Mapping[str, Any]) -> None:
    """Check a specification that another machine will deploy from a file.

    Args:
        spec: The specification.
        callers: ``key_hashes`` and ``tenants``, or nothing.

    Raises:
        SpecError: The specification or a key is invalid, or names what only this machine has.
    """
    if isinstance(spec, BaselineSpec):
        raise SpecError(
            "a BaselineSpec has no manifest: it is for comparisons in a notebook. Use a "
            "ServiceSpec."
        )
    if callers:
        tenants_from(callers)
    check_routing(spec)
    for model in spec.engines:
        check_engine_kwargs(model)
        checks.check_parallel(model)
        checks.check_cache(model)
        _check_portable(model)


def _check_portable(model: ModelSpec) -> None:
    paths = local_paths(model) | adapter_paths(model)
    if not model.embedded and is_local(model.source):
        paths["model.source"] = model.source
    for argument, path in paths.items():
        if not path.startswith("/"):
            raise SpecError(
                f"{argument} = {path!r} is on this machine, which the cluster's nodes do not have. "
                "Give a hub id, or an absolute path in the image or on a volume."
            )


def check_resources(spec: EndpointSpec, nodes: list[Mapping[str, Any]] | None = None) -> None:
    """Raise :class:`ResourcesError` if a replica can never be placed on the cluster.

    Args:
        spec: The specification.
        nodes: The resources of each node as Ray reports them (``memory`` in bytes); by default
            those of the connected cluster.
    """
    if nodes is None:
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for name, cpus in spec.auxiliary_deployments().items():
        if not any(float(node.get("CPU", 0)) >= cpus for node in nodes):
            raise ResourcesError(
                f"{name}.num_cpus = {cpus:g}, but no node of the cluster has that many CPUs. "
                "Lower it, or add a larger node."
            )
    for model in spec.engines:
        _check_model_resources(model, nodes)
    if isinstance(spec, ServiceSpec) and spec.model.disaggregated:
        _check_sides(spec, nodes)


def _check_sides(spec: ServiceSpec, nodes: list[Mapping[str, Any]]) -> None:
    """Both sides of a disaggregated model must run at once."""
    for name in ("CPU", "GPU"):
        needs = [
            model.worker_resources.get(name, 0.0) * model.workers * model.scaling.min_replicas
            for model in spec.engines
        ]
        total = sum(float(node.get(name, 0)) for node in nodes)
        if sum(needs) > total + 1e-9:
            decode, prefill = needs
            raise ResourcesError(
                f"model.disaggregated needs {sum(needs):g} {name}s, {prefill:g} for prefill and "
                f"{decode:g} for decode, but the cluster has {total:g}. Lower "
                f"scaling.min_replicas or the {name}s of a side, or add nodes."
            )


def _check_model_resources(model: ModelSpec, nodes: list[Mapping[str, Any]]) -> None:
    for name in ("CPU", "GPU") if model.accelerator == "gpu" else ("CPU",):
        _check_total(
            name, model.worker_resources[name], model.workers * model.data_parallel_size, nodes
        )
    if model.accelerator_type and not any(
        f"accelerator_type:{model.accelerator_type}" in node for node in nodes
    ):
        types = sorted({k.split(":")[1] for n in nodes for k in n if k.startswith("accelerator_")})
        raise ResourcesError(
            f"model.accelerator_type = {model.accelerator_type!r}, but the cluster has "
            f"{', '.join(types) or 'none'}. Choose one of those, or leave the field out."
        )
    memory = model.memory_gib or 0.0
    largest = max((float(node.get("memory", 0)) for node in nodes), default=0.0) / 2**30
    if memory > largest:
        raise ResourcesError(
            f"model.memory_gib = {memory:g}, but the largest node of the cluster has "
            f"{largest:.1f} GiB. Lower it, or add a larger node."
        )
    _check_combination(model, nodes)
    checks.check_memory(model, nodes)


def _check_total(name: str, amount: float, workers: int, nodes: list[Mapping[str, Any]]) -> None:
    if sum(_copies(node, {name: amount}) for node in nodes) < workers:
        total = sum(float(node.get(name, 0)) for node in nodes)
        raise ResourcesError(
            f"model.num_{name.lower()}s = {amount:g} for each of {workers} engine worker(s), but "
            f"the cluster has {total:g} {name}s on {len(nodes)} node(s). Lower it, lower the "
            f"parallel sizes, or add nodes."
        )


def _check_combination(model: ModelSpec, nodes: list[Mapping[str, Any]]) -> None:
    """A worker needs all of its resources on one node; the first one needs the memory too."""
    memory = (model.memory_gib or 0) * 2**30
    copies = [_copies(node, model.worker_resources) for node in nodes]
    has_memory = [memory <= float(node.get("memory", 0)) for node in nodes]
    problem = _placement_problem(model, copies)
    if problem is None and any(n and has for n, has in zip(copies, has_memory, strict=True)):
        return
    fields = {
        "num_cpus": model.worker_resources["CPU"],
        "num_gpus": model.worker_resources.get("GPU"),
        "memory_gib": model.memory_gib,
    }
    requested = [f"model.{name} = {value:g}" for name, value in fields.items() if value is not None]
    if model.accelerator_type is not None:
        requested.append(f"model.accelerator_type = {model.accelerator_type!r}")
    raise ResourcesError(
        f"{', '.join(requested)}: the cluster has enough of each, but not together on one node for "
        f"{model.workers * model.data_parallel_size} engine worker(s)"
        f"{problem or ''}. Lower one of them, or add nodes."
    )


def _placement_problem(model: ModelSpec, copies: list[int]) -> str | None:
    """Return why nodes with room for ``copies`` workers each cannot hold a replica, or None."""
    workers, largest = model.workers, max(copies, default=0)
    if (
        model.placement_strategy == "STRICT_PACK"
        and model.data_parallel_size == 1
        and largest < workers
    ):
        return f" (placement = 'STRICT_PACK' needs all on one node; the largest takes {largest})"
    usable = sum(count > 0 for count in copies)
    if model.placement_strategy == "STRICT_SPREAD" and usable < workers:
        return f" (placement = 'STRICT_SPREAD' needs a node for each; {usable} node(s) take one)"
    return "" if sum(copies) < workers * model.data_parallel_size else None


def fits_beside(models: Iterable[ModelSpec], free: Iterable[Mapping[str, float]]) -> bool:
    """Return whether one more replica, or group of them, of each model fits on free resources.

    Args:
        models: The models.
        free: What no replica of a node has reserved, as Ray reports it.
    """
    nodes = [dict(node) for node in free]
    return all(
        _reserve(nodes, bundle)
        for model in models
        for bundle in _bundles(model)
        for _ in range(model.data_parallel_size)
    )


def fits_in_memory(models: Iterable[ModelSpec], free_gib: float) -> bool:
    """Return whether one more CPU replica of each model fits into this machine's free memory."""
    return sum(map(_replica_gib, models)) <= free_gib


def _replica_gib(model: ModelSpec) -> float:
    """Estimate the memory of a CPU replica; a GPU replica needs little of it."""
    if model.accelerator != "cpu":
        return 0.0
    if model.memory_gib:
        return model.memory_gib
    architecture = checks.architecture_of(model)
    weights = 0.0
    if architecture is not None:
        layout, types = checks.layout_of(model), checks.data_types_of(model)
        weights = weight_bytes(architecture, layout, types) / 2**30
    return PROCESSES_GIB + model.workers * (weights + model.kv_cache_gib)


def _bundles(model: ModelSpec) -> list[dict[str, float]]:
    """Return what one replica needs: of one node, or of a node for each worker."""
    workers = [dict(model.worker_resources) for _ in range(model.workers)]
    if model.memory_gib:
        workers[0]["memory"] = model.memory_gib * 2**30
    if model.placement_strategy != "STRICT_PACK":
        return workers
    names = {name for worker in workers for name in worker}
    return [{name: sum(worker.get(name, 0.0) for worker in workers) for name in names}]


def _reserve(nodes: list[dict[str, float]], bundle: Mapping[str, float]) -> bool:
    """Subtract a bundle from the first node that has room for it."""
    for node in nodes:
        if _copies(node, bundle):
            for name, need in bundle.items():
                node[name] -= need
            return True
    return False


def _copies(node: Mapping[str, Any], bundle: Mapping[str, float]) -> int:
    """Return how many of these bundles fit on an empty node, with a margin for rounding."""
    return min(int(float(node.get(name, 0)) / need + 1e-9) for name, need in bundle.items())


def reads_prompts(spec: EndpointSpec) -> bool:
    """Return whether the proxy must show each prompt to Serve's router."""
    return not spec.composed and spec.models[0].routing in READS_PROMPTS


def check_running_serve(spec: EndpointSpec, details: Mapping[str, Any]) -> int:
    """Return the port of a Serve that already runs, if it can serve this specification.

    Raises:
        ClusterError: Its address or its proxies are not what the specification needs.
    """
    options = details["http_options"]
    for name in ("host", "port"):
        wanted, actual = getattr(spec, name), options[name]
        if wanted != actual and not (name == "port" and wanted == 0):
            raise ClusterError(
                f"{name} = {wanted!r}, but Ray Serve already runs on this cluster with {name} = "
                f"{actual!r}, which cannot change while it runs. Set {name} = {actual!r}, or shut "
                "Serve down first."
            )
    _check_proxies(spec, [proxy["actor_name"] for proxy in details["proxies"].values()])
    return int(options["port"])


def _check_proxies(spec: EndpointSpec, proxies: list[str]) -> None:
    classes = {actor_class(proxy) for proxy in proxies}
    if not spec.composed and classes - {HAPROXY_ACTOR}:
        raise ClusterError(
            "Ray Serve already runs on this cluster without HAProxy, which direct streaming needs "
            "and which cannot be turned on while it runs. Shut Serve down (serve shutdown) and "
            f"deploy again, or start it with {HA_PROXY}=1."
        )
    if "max_connections_per_address" in spec.model_fields_set:
        _check_connections(spec.max_connections_per_address, proxies)
    if reads_prompts(spec) and not all(forwards_bodies(proxy) for proxy in proxies):
        raise ClusterError(
            f"model.routing = {spec.models[0].routing!r}, but Ray Serve already runs on this "
            f"cluster without {FORWARD_BODY}=1, which cannot change while it runs. Choose another "
            "routing, or shut Serve down first."
        )


def _check_connections(wanted: int, proxies: list[str]) -> None:
    for actual in {proxy_variable(proxy, PER_ADDRESS_VARIABLE) for proxy in proxies}:
        if actual != str(wanted):
            limit = "without this limit" if actual is None else f"with {actual}"
            raise ClusterError(
                f"max_connections_per_address = {wanted}, but Ray Serve already runs on this "
                f"cluster {limit}, which cannot change while it runs. Leave the field out, or shut "
                "Serve down first."
            )
