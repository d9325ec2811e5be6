"""A model as a deployment of Ray Serve: its resources, placement, scaling and routing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from serving.cluster.connection import METRICS_ENV
from serving.engine.engine_args import environment
from serving.gateway.config import GateConfig
from serving.pipeline.config import pipeline_config
from serving.spec.baseline import BaselineSpec
from serving.spec.guardrail import PresidioGuardrail
from serving.spec.model import LIVE_FIELDS, ModelSpec, capacity, deployment_name, short_hash
from serving.spec.router import RouterSpec
from serving.spec.scaling import ScalingSpec
from serving.spec.service import EndpointSpec
from serving.spec.tenants import Tenant

if TYPE_CHECKING:
    from ray.serve import Application

ROUND_ROBIN = "ray.serve.experimental.round_robin_router.RoundRobinRouter"
DIRECT_ROUTERS = {
    "round_robin": ROUND_ROBIN,
    "power_of_two": "serving.deploy.replica_routers.DirectPowerOfTwo",
    "prefix_aware": "serving.deploy.replica_routers.DirectPrefixAware",
}
HANDLE_ROUTERS = {
    "round_robin": ROUND_ROBIN,
    "power_of_two": "ray.serve._private.request_router:PowerOfTwoChoicesRequestRouter",
    "prefix_aware": "serving.deploy.replica_routers.PrefixAware",
}


def deployment(path: str, spec: EndpointSpec, model: ModelSpec, **options: Any) -> Any:
    """A model's deployment of the replica class at ``path``: its resources, its scaling."""
    from ray import serve

    memory = {} if model.memory_gib is None else {"memory": int(model.memory_gib * 2**30)}
    bundles: list[dict[str, float]] = [dict(model.worker_resources) for _ in range(model.workers)]
    bundles[0] |= memory
    return serve.deployment(
        name=deployment_name(model),
        ray_actor_options={
            "num_cpus": 0,
            **memory,
            "runtime_env": {"env_vars": METRICS_ENV | environment(model)},
        },
        placement_group_bundles=bundles,
        **_group(model),
        autoscaling_config=autoscaling(model.scaling, model.data_parallel_size),
        max_constructor_retry_count=1,
        health_check_period_s=model.health_check_period_s,
        health_check_timeout_s=model.health_check_timeout_s,
        request_router_config=request_router(model, composed=spec.composed),
        # Fewer replicas, or others, must cost no request that is in progress.
        graceful_shutdown_timeout_s=spec.limits.max_seconds,
        **options,
    )(path).options(version=spec.engine_fingerprint(model), _internal=True)


def request_router(model: ModelSpec, *, composed: bool) -> Any:
    """Ray Serve's ``request_router_config`` for the model's ``routing``."""
    from ray.serve.config import RequestRouterConfig

    routing = model.routing or ("power_of_two" if composed else "round_robin")
    # Beyond this difference in requests, load decides and not the prefix.
    affinity = {
        "imbalanced_threshold": model.scaling.target_ongoing_requests,
        "do_eviction": True,
    }
    return RequestRouterConfig(
        request_router_class=(HANDLE_ROUTERS if composed else DIRECT_ROUTERS)[routing],
        request_router_kwargs=affinity if routing == "prefix_aware" else {},
    )


def _group(model: ModelSpec) -> dict[str, Any]:
    """How the workers of a replica, or the replicas of a data-parallel group, are placed."""
    if model.data_parallel_size == 1:
        return {"placement_group_strategy": model.placement_strategy}
    from ray.serve.config import GangSchedulingConfig

    return {"gang_scheduling_config": GangSchedulingConfig(gang_size=model.data_parallel_size)}


def autoscaling(scaling: ScalingSpec, group: int = 1) -> dict[str, Any]:
    """Ray Serve's ``autoscaling_config``: the fields that are its own, absent ones left out.

    Its bounds count Serve's replicas, of which a data-parallel group has ``group``. Left out, too,
    is an absent ``initial_replicas``: Serve starts at ``min_replicas`` without it, and with it
    every change to a running service would throw the replicas back to that number.
    """
    not_serves = {"max_ongoing_requests", "max_queued_requests", "retry_after_s", "policy"}
    own = scaling.model_dump(exclude=not_serves, exclude_none=True)
    own |= {name: own[name] * group for name in own if name.endswith("_replicas")}
    policy = scaling.policy.serve_policy()
    return own if policy is None else own | {"policy": policy}


DIRECT_REPLICA = "serving.engine.replica.DirectReplica"


ENGINE_REPLICA = "serving.engine.replica.EngineReplica"


DIRECT_GROUP = "serving.engine.replica.DirectGroupReplica"


ENGINE_GROUP = "serving.engine.replica.EngineGroupReplica"


GUARDRAIL = "serving.guardrail.deployment.Guardrail"


AUTO_ROUTER = "serving.pipeline.router.ModelRouter"


BACKSTOP = 1024
"""Serve's own limits stand this far behind the gate's: a flood of wrong keys, each answered in
less than a millisecond, must not use up what valid requests wait in."""


def presidio_deployment(guardrail: PresidioGuardrail) -> Application:
    from ray import serve

    scaling = guardrail.scaling
    return (
        serve.deployment(
            name="guardrail",
            ray_actor_options={"num_cpus": guardrail.num_cpus},
            autoscaling_config=autoscaling(scaling),
            max_ongoing_requests=scaling.max_ongoing_requests,
            max_queued_requests=BACKSTOP,
            max_constructor_retry_count=1,
            user_config=guardrail.model_dump(mode="json", exclude={"scaling", "num_cpus"}),
        )(GUARDRAIL)
        .options(version="1", _internal=True)
        .bind()
    )


def router_deployment(router: RouterSpec, models: tuple[str, ...]) -> Application:
    from ray import serve

    return (
        serve.deployment(
            name="router",
            num_replicas=router.replicas,
            ray_actor_options={"num_cpus": router.num_cpus},
            max_ongoing_requests=BACKSTOP,
            max_queued_requests=BACKSTOP,
            max_constructor_retry_count=1,
            user_config=router.model_dump(mode="json", exclude={"replicas", "num_cpus"}),
        )(AUTO_ROUTER)
        .options(version=short_hash(list(models)), _internal=True)
        .bind(models)
    )


def engine_deployment(spec: EndpointSpec, model: ModelSpec) -> Application:
    """A model's deployment behind a handle."""
    return deployment(
        ENGINE_REPLICA if model.data_parallel_size == 1 else ENGINE_GROUP,
        spec,
        model,
        max_ongoing_requests=model.scaling.max_ongoing_requests,
        max_queued_requests=BACKSTOP,
    ).bind(engine_fields(spec, model))


def engine_fields(spec: EndpointSpec, model: ModelSpec) -> dict[str, Any]:
    """What a replica starts from, with vLLM's own cap on answers for requests that name none."""
    fields = model.model_dump(mode="json", exclude=LIVE_FIELDS)
    own = {"max_new_tokens": spec.limits.max_tokens}
    given = fields["engine_kwargs"].get("override_generation_config", {})
    fields["engine_kwargs"]["override_generation_config"] = own | given
    return fields


def user_config(spec: EndpointSpec, tenants: tuple[Tenant, ...]) -> dict[str, Any]:
    """What running replicas take over without a restart, and what tells a spec from another."""
    access = _access(spec, tenants).model_dump(mode="json")
    told = {"access": access, "fingerprint": spec.fingerprint()}
    if not spec.composed:
        return told
    capacities = {model.model_id: capacity(model) for model in spec.models}
    names = {model.model_id: deployment_name(model) for model in spec.models}
    return told | {"composition": pipeline_config(spec, capacities, names)}


def _access(spec: EndpointSpec, tenants: tuple[Tenant, ...]) -> GateConfig:
    """One replica's limits; before an ingress, those of all replicas it may come to serve.

    There the queue is left to Serve's handle, whose length the autoscaler sees.
    """
    scaling = spec.models[0].scaling
    ongoing, queued = scaling.max_ongoing_requests, scaling.max_queued_requests
    if spec.composed:
        ongoing, queued = sum(capacity(model) for model in spec.models), 0
    return GateConfig(
        tenants=tenants,
        limits=spec.limits,
        max_ongoing_requests=ongoing,
        max_queued_requests=queued,
        retry_after_s=scaling.retry_after_s,
    )


BASELINE_REPLICA = "serving.baselines.replica.BaselineReplica"


def replica(spec: BaselineSpec, **options: Any) -> Application:
    """The deployment, bound; its engine's process computes on what the replica itself holds."""

    model = spec.model
    made = deployment(BASELINE_REPLICA, spec, model, **options)
    actor = dict(made.ray_actor_options) | {"num_cpus": model.num_cpus}
    if model.accelerator == "gpu":
        actor["num_gpus"] = model.num_gpus or 1.0
    return made.options(ray_actor_options=actor).bind(spec.model_dump(mode="json"))
