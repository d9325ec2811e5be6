"""The deployments of Ray Serve: engines, baselines, guardrail, router and ingress.

Classes are named by import path, so that only their own replicas import them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from serving.compat.ray import (
    KV_AWARE_ROUTER,
    KV_LLM_ROUTER_NAME,
    LLM_ROUTER,
    POWER_OF_TWO_ROUTER,
    ROUND_ROBIN_ROUTER,
    SESSION_ROUTER,
    with_version,
)
from serving.compat.variables import KV_AWARE_ENV, LOGGING, METRICS_ENV, SINGLE_LOOP
from serving.deploy.ownership import current_owner
from serving.engine.engine_args import environment, llm_config
from serving.gateway.config import GateConfig, ServedModel
from serving.pipeline.config import pipeline_config
from serving.spec.baseline import BaselineSpec
from serving.spec.guardrail import PresidioGuardrail
from serving.spec.model import (
    KV_AWARE,
    ModelSpec,
    PrefillModel,
    absolute,
    capacity,
    deployment_name,
    served_names,
    short_hash,
)
from serving.spec.pipeline import PipelineSpec
from serving.spec.router import RouterSpec
from serving.spec.scaling import ScalingSpec
from serving.spec.service import EndpointSpec
from serving.spec.tenants import Tenant

if TYPE_CHECKING:
    from ray.serve import Application

DIRECT_REPLICA = "serving.engine.entry.DirectReplica"
DIRECT_GROUP = "serving.engine.entry.DirectGroupReplica"
DECODE_REPLICA = "serving.engine.entry.DecodeReplica"
PREFILL_REPLICA = "serving.engine.entry.PrefillReplica"
ENGINE_REPLICA = "serving.engine.entry.EngineReplica"
ENGINE_GROUP = "serving.engine.entry.EngineGroupReplica"
BASELINE_REPLICA = "serving.baselines.replica.BaselineReplica"
GUARDRAIL = "serving.guardrail.deployment.Guardrail"
AUTO_ROUTER = "serving.pipeline.router.ModelRouter"
INGRESS = "serving.pipeline.ingress.Ingress"

DIRECT_ROUTERS = {
    "round_robin": ROUND_ROBIN_ROUTER,
    "power_of_two": "serving.deploy.replica_routers.DirectPowerOfTwo",
    "prefix_aware": "serving.deploy.replica_routers.DirectPrefixAware",
    "session": SESSION_ROUTER,
    "kv_aware": KV_AWARE_ROUTER,
}
HANDLE_ROUTERS = {
    "round_robin": ROUND_ROBIN_ROUTER,
    "power_of_two": POWER_OF_TWO_ROUTER,
    "prefix_aware": "serving.deploy.replica_routers.PrefixAware",
    "session": SESSION_ROUTER,
}

ONE_MORE_PERCENT = 1
"""Serve's ``max_surge_percent`` for one additional replica, or group of them, during an update:
Serve rounds up. Old replicas then serve until the new ones are ready."""

BACKSTOP = 1024
"""Requests that Serve's own limits allow beyond the gate's. A flood of wrong keys, each answered
in less than a millisecond, must not use up the slots that valid requests wait in."""


def direct_deployment(
    spec: EndpointSpec,
    model: ModelSpec,
    tenants: tuple[Tenant, ...],
    surge_percent: int,
    prefill: PrefillModel | None = None,
) -> Application:
    """Return the bound deployment of a model, or of a baseline, that answers clients itself.

    With ``prefill``, the model is the decode side of a disaggregated one.
    """
    scaling = model.scaling
    gate_capacity = scaling.max_ongoing_requests + scaling.max_queued_requests
    options: dict[str, Any] = {
        "user_config": user_config(spec, tenants),
        "max_ongoing_requests": gate_capacity + BACKSTOP,
        "max_queued_requests": BACKSTOP,
        "max_surge_percent": surge_percent,
    }
    if isinstance(spec, BaselineSpec):
        return _baseline_deployment(spec, **options)
    if prefill is not None:
        reader = _handle_deployment(PREFILL_REPLICA, spec, prefill, surge_percent)
        deployment = model_deployment(DECODE_REPLICA, spec, model, **options)
        return deployment.bind(engine_fields(spec, model), prefill_server=reader)
    path = DIRECT_REPLICA if model.data_parallel_size == 1 else DIRECT_GROUP
    return model_deployment(path, spec, model, **options).bind(engine_fields(spec, model))


def engine_deployment(spec: EndpointSpec, model: ModelSpec, surge_percent: int) -> Application:
    """Return the bound deployment of a model behind a handle."""
    path = ENGINE_REPLICA if model.data_parallel_size == 1 else ENGINE_GROUP
    return _handle_deployment(path, spec, model, surge_percent)


def _handle_deployment(
    path: str, spec: EndpointSpec, model: ModelSpec, surge_percent: int
) -> Application:
    return model_deployment(
        path,
        spec,
        model,
        behind_handle=True,
        max_ongoing_requests=model.scaling.max_ongoing_requests,
        max_queued_requests=BACKSTOP,
        max_surge_percent=surge_percent,
    ).bind(engine_fields(spec, model))


def _baseline_deployment(spec: BaselineSpec, **options: Any) -> Application:
    """The engine's process of a baseline computes on what the replica itself holds."""
    model = spec.model
    deployment = model_deployment(BASELINE_REPLICA, spec, model, **options)
    resources = dict(deployment.ray_actor_options) | {"num_cpus": model.num_cpus}
    if model.accelerator == "gpu":
        resources["num_gpus"] = model.num_gpus or 1.0
    return deployment.options(ray_actor_options=resources).bind(spec.model_dump(mode="json"))


def llm_router_deployment(model: ModelSpec, replicas: Application) -> Application:
    """Return Ray Serve LLM's router, which HAProxy asks for a replica on the direct path.

    For KV-aware routing it tokenizes prompts as the model does, so it has the configuration of the
    model, and the process that builds the application imports vLLM.
    """
    from ray import serve

    actor: dict[str, Any] = {"num_cpus": 0}
    arguments: dict[str, Any] = {}
    # Its handle names the model's deployment, so another model needs another router.
    version = [model.routing, deployment_name(model)]
    name = "router"
    if model.routing == KV_AWARE:
        name, actor["runtime_env"] = KV_LLM_ROUTER_NAME, {"env_vars": KV_AWARE_ENV}
        arguments["llm_config"] = llm_config(model)
        version.append(short_hash(model.fixed_fields()))
    router = serve.deployment(
        logging_config=LOGGING,
        name=name,
        max_ongoing_requests=BACKSTOP,
        ray_actor_options=actor,
    )(LLM_ROUTER)
    return with_version(router, short_hash(version)).bind(server=replicas, **arguments)


def ingress_deployment(
    spec: EndpointSpec, tenants: tuple[Tenant, ...], **handles: Any
) -> Application:
    """Return the ingress of the composed path; ``handles`` are its constructor's arguments."""
    from ray import serve

    ingress = serve.deployment(
        logging_config=LOGGING,
        name="ingress",
        num_replicas=spec.ingress_replicas if isinstance(spec, PipelineSpec) else 1,
        max_ongoing_requests=4 * BACKSTOP,
        max_queued_requests=BACKSTOP,
        max_surge_percent=ONE_MORE_PERCENT,
        ray_actor_options={"num_cpus": 0},
        user_config=user_config(spec, tenants),
    )(INGRESS)
    return with_version(ingress, spec.ingress_fingerprint()).bind(**handles)


def presidio_deployment(guardrail: PresidioGuardrail) -> Application:
    """Return the guardrail that looks for personal data."""
    from ray import serve

    scaling = guardrail.scaling
    detector = serve.deployment(
        logging_config=LOGGING,
        name="guardrail",
        ray_actor_options={"num_cpus": guardrail.num_cpus},
        autoscaling_config=autoscaling_config(scaling),
        max_ongoing_requests=scaling.max_ongoing_requests,
        max_queued_requests=BACKSTOP,
        max_constructor_retry_count=1,
        user_config=guardrail.model_dump(mode="json", exclude={"scaling", "num_cpus"}),
    )(GUARDRAIL)
    return with_version(detector, "1").bind()


def router_deployment(router: RouterSpec, models: tuple[str, ...]) -> Application:
    """Return the router that chooses among the models with these ids."""
    from ray import serve

    chooser = serve.deployment(
        logging_config=LOGGING,
        name="router",
        num_replicas=router.replicas,
        ray_actor_options={"num_cpus": router.num_cpus},
        max_ongoing_requests=BACKSTOP,
        max_queued_requests=BACKSTOP,
        max_constructor_retry_count=1,
        user_config=router.model_dump(mode="json", exclude={"replicas", "num_cpus"}),
    )(AUTO_ROUTER)
    return with_version(chooser, short_hash(list(models))).bind(models)


def model_deployment(
    path: str,
    spec: EndpointSpec,
    model: ModelSpec,
    *,
    behind_handle: bool = False,
    **options: Any,
) -> Any:
    """Return a model's deployment of the replica class at ``path``, not bound.

    It has the model's resources, scaling and routing; ``options`` are Serve's own. Its replicas are
    behind a handle, or HAProxy sends them requests.
    """
    from ray import serve

    memory = {} if model.memory_gib is None else {"memory": int(model.memory_gib * 2**30)}
    bundles: list[dict[str, float]] = [dict(model.worker_resources) for _ in range(model.workers)]
    bundles[0] |= memory
    deployment = serve.deployment(
        logging_config=LOGGING,
        name=deployment_name(model),
        ray_actor_options={
            "num_cpus": 0,
            **memory,
            "runtime_env": {"env_vars": METRICS_ENV | _event_loop(model) | environment(model)},
        },
        placement_group_bundles=bundles,
        **_placement(model),
        autoscaling_config=autoscaling_config(model.scaling, model.data_parallel_size),
        max_constructor_retry_count=1,
        health_check_period_s=model.health_check_period_s,
        health_check_timeout_s=model.health_check_timeout_s,
        request_router_config=request_router_config(model, composed=behind_handle),
        # Replacing or removing replicas must not cut off requests in progress.
        graceful_shutdown_timeout_s=spec.limits.max_seconds,
        **options,
    )(path)
    return with_version(deployment, spec.engine_fingerprint(model))


def _event_loop(model: ModelSpec) -> dict[str, str]:
    """Return the variables that choose the event loop of a replica's own code.

    A single loop is faster where the front end limits the throughput, as on a GPU. On a CPU, which
    the front end and the engine share, it made the time to first token longer.
    """
    return SINGLE_LOOP if model.accelerator == "gpu" else {}


def request_router_config(model: ModelSpec, *, composed: bool) -> Any:
    """Return Ray Serve's ``request_router_config`` for the model's ``routing``."""
    from ray.serve.config import RequestRouterConfig

    routing = model.routing or ("power_of_two" if composed else "round_robin")
    # Beyond this difference in requests, the load decides and not the prefix.
    affinity = {
        "imbalanced_threshold": model.scaling.target_ongoing_requests,
        "do_eviction": True,
    }
    return RequestRouterConfig(
        request_router_class=(HANDLE_ROUTERS if composed else DIRECT_ROUTERS)[routing],
        request_router_kwargs=affinity if routing == "prefix_aware" else {},
    )


def _placement(model: ModelSpec) -> dict[str, Any]:
    """Return how Ray places the workers of a replica, or the replicas of a data-parallel group."""
    if model.data_parallel_size == 1:
        return {"placement_group_strategy": model.placement_strategy}
    from ray.serve.config import GangSchedulingConfig

    return {"gang_scheduling_config": GangSchedulingConfig(gang_size=model.data_parallel_size)}


def autoscaling_config(scaling: ScalingSpec, group_size: int = 1) -> dict[str, Any]:
    """Return Ray Serve's ``autoscaling_config``: the fields that Serve knows and that are set.

    Serve's bounds count its own replicas, of which a data-parallel group has ``group_size``. An
    absent ``initial_replicas`` stays absent: without it Serve starts at ``min_replicas``, and with
    it every change to a running service would reset the number of replicas.
    """
    gate_fields = {"max_ongoing_requests", "max_queued_requests", "retry_after_s", "policy"}
    config = scaling.model_dump(exclude=gate_fields, exclude_none=True)
    config |= {name: config[name] * group_size for name in config if name.endswith("_replicas")}
    policy = scaling.policy.serve_policy()
    return config if policy is None else config | {"policy": policy}


def engine_fields(spec: EndpointSpec, model: ModelSpec) -> dict[str, Any]:
    """Return the constructor's arguments of a replica.

    vLLM caps the answers of requests that name no limit, as the spec's limits say. It would take a
    relative path of an adapter for a hub id, because a replica has another working directory.
    """
    fields = model.fixed_fields()
    fields["adapters"] = {name: absolute(path) for name, path in model.adapters.items()}
    default = {"max_new_tokens": spec.limits.max_tokens}
    overrides = fields["engine_kwargs"].get("override_generation_config", {})
    fields["engine_kwargs"]["override_generation_config"] = default | overrides
    return fields


def user_config(spec: EndpointSpec, tenants: tuple[Tenant, ...]) -> dict[str, Any]:
    """Return what running replicas take over without a restart.

    The spec's fingerprint and the owner are there for later deployments.
    """
    access = _gate_config(spec, tenants).model_dump(mode="json")
    config = {"access": access, "fingerprint": spec.fingerprint(), "owner": current_owner()}
    if not spec.composed:
        return config
    capacities = {model.model_id: capacity(model) for model in spec.models}
    names = {model.model_id: deployment_name(model) for model in spec.models}
    return config | {"composition": pipeline_config(spec, capacities, names)}


def _gate_config(spec: EndpointSpec, tenants: tuple[Tenant, ...]) -> GateConfig:
    """The limits of one replica, or at an ingress those of all replicas it may serve.

    An ingress leaves the queue to Serve's handle, whose length the autoscaler sees.
    """
    scaling, names = spec.models[0].scaling, served_names(spec.models)
    ongoing, queued = scaling.max_ongoing_requests, scaling.max_queued_requests
    if spec.composed:
        ongoing, queued = sum(capacity(model) for model in spec.models), 0
    return GateConfig(
        tenants=tenants,
        models=tuple(_served_model(model, names) for model in spec.models),
        auto=isinstance(spec, PipelineSpec) and spec.router is not None,
        sessions=spec.uses_sessions,
        stores_responses=_stores_responses(spec, tenants),
        cors_origins=spec.cors_origins,
        limits=spec.limits,
        max_ongoing_requests=ongoing,
        max_queued_requests=queued,
        retry_after_s=scaling.retry_after_s,
    )


def _served_model(model: ModelSpec, names: dict[str, str]) -> ServedModel:
    return ServedModel(
        id=model.model_id,
        aliases=tuple(name for name in model.aliases if names.get(name) == model.model_id),
        adapters=tuple(model.adapters),
        max_model_len=model.max_model_len,
    )


def _stores_responses(spec: EndpointSpec, tenants: tuple[Tenant, ...]) -> bool:
    """Whether a stored response is found again, and only by the tenant that asked for it.

    Each replica has its own store, which knows no tenants.
    """
    model = spec.models[0]
    enabled = model.env.get("VLLM_ENABLE_RESPONSES_API_STORE") == "1"
    replicas = model.scaling.max_replicas * model.data_parallel_size
    direct = not spec.composed and not isinstance(spec, BaselineSpec)
    return enabled and direct and replicas == 1 and len(tenants) == 1
