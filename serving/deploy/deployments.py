"""A model as a deployment of Ray Serve: its resources, placement, scaling and routing."""

from __future__ import annotations

from typing import Any

from serving.cluster.connection import METRICS_ENV
from serving.engine.engine_args import environment
from serving.spec.service import EndpointSpec, ModelSpec, ScalingSpec

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


def deployment_name(model: ModelSpec) -> str:
    """The model's deployment, as Serve's status and metrics name it."""
    return model.model_id.replace("/", "--").replace(".", "_")


def capacity(model: ModelSpec) -> int:
    """Requests that a model may have at once, at work in all its replicas or queued for them."""
    scaling = model.scaling
    return scaling.max_ongoing_requests * scaling.max_replicas + scaling.max_queued_requests


def deployment(path: str, spec: EndpointSpec, model: ModelSpec, **options: Any) -> Any:
    """A model's deployment of the replica class at ``path``: its resources, its scaling."""
    from ray import serve

    memory = {} if model.memory_gib is None else {"memory": int(model.memory_gib * 2**30)}
    bundles: list[dict[str, float]] = [dict(model.bundle) for _ in range(model.workers)]
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
        return {"placement_group_strategy": model.strategy}
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
