"""From a specification to a Serve application; also ``serve run serving.app:build port=8000``."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from serving.auth import Access, key_hash
from serving.engine import check, environment
from serving.errors import SpecError
from serving.spec import ModelSpec, ScalingSpec, ServiceSpec

if TYPE_CHECKING:
    from ray.serve import Application

DIRECT_REPLICA = "serving.replica.DirectReplica"
ENGINE_REPLICA = "serving.replica.EngineReplica"
INGRESS = "serving.ingress.Ingress"
ROUTER = "ray.llm._internal.serve.core.ingress.router.LLMRouter"

BACKSTOP = 1024
"""Serve's own limits stand this far behind the gate's: a flood of wrong keys, each answered in
less than a millisecond, must not use up what valid requests wait in."""


def build(args: dict[str, Any]) -> Application:
    """Build from plain arguments: the spec's fields, and ``key_hashes`` of the accepted keys.

    On ``serve run``'s command line every value is text: there ``model`` is JSON, and
    ``key_hashes`` are separated by commas.
    """
    fields = dict(args)
    key_hashes = fields.pop("key_hashes", None) or ()
    if isinstance(key_hashes, str):
        key_hashes = key_hashes.split(",")
    if not key_hashes:
        raise SpecError("key_hashes is missing: give the SHA-256 of each accepted API key.")
    if not all(re.fullmatch("[0-9a-f]{64}", one) for one in key_hashes):
        # The value may be a key, so the message does not repeat it.
        raise SpecError("key_hashes needs SHA-256 in 64 lowercase hexadecimal digits, never keys.")
    if isinstance(fields.get("model"), str):
        fields["model"] = _from_json(fields["model"])
    spec = ServiceSpec(**fields)
    check(spec.model)
    return application(spec, tuple(key_hashes))


def _from_json(model: str) -> Any:
    try:
        return json.loads(model)
    except ValueError as error:
        raise SpecError(
            f"model = {model!r} is not JSON ({error}). Give its fields as JSON."
        ) from None


def application(spec: ServiceSpec, key_hashes: tuple[str, ...]) -> Application:
    """The direct path where one model always runs, else the composed path (DESIGN.md)."""
    return _composed(spec, key_hashes) if spec.composed else _direct(spec, key_hashes)


def deployment_name(model: ModelSpec) -> str:
    """The model's deployment, as Serve's status and metrics name it."""
    return model.model_id.replace("/", "--").replace(".", "_")


def _direct(spec: ServiceSpec, key_hashes: tuple[str, ...]) -> Application:
    from ray import serve
    from ray.serve.config import RequestRouterConfig
    from ray.serve.experimental.round_robin_router import RoundRobinRouter

    scaling = spec.model.scaling
    capacity = scaling.max_ongoing_requests + scaling.max_queued_requests
    model = _deployment(
        DIRECT_REPLICA,
        spec,
        user_config=user_config(spec, key_hashes),
        max_ongoing_requests=capacity + BACKSTOP,
        max_queued_requests=BACKSTOP,
        request_router_config=RequestRouterConfig(request_router_class=RoundRobinRouter),
    ).bind(spec.model.model_dump(mode="json", exclude={"scaling"}))
    router = serve.deployment(
        name="router", max_ongoing_requests=BACKSTOP, ray_actor_options={"num_cpus": 0}
    )(ROUTER).options(version="1", _internal=True)
    return model._with_ingress_request_router(router.bind(server=model))


def _composed(spec: ServiceSpec, key_hashes: tuple[str, ...]) -> Application:
    from ray import serve

    model = _deployment(
        ENGINE_REPLICA,
        spec,
        max_ongoing_requests=spec.model.scaling.max_ongoing_requests,
        max_queued_requests=BACKSTOP,
    ).bind(spec.model.model_dump(mode="json", exclude={"scaling"}))
    ingress = serve.deployment(
        name="ingress",
        num_replicas=1,
        max_ongoing_requests=4 * BACKSTOP,
        max_queued_requests=BACKSTOP,
        ray_actor_options={"num_cpus": 0},
        user_config=user_config(spec, key_hashes),
    )(INGRESS).options(version=spec.engine_fingerprint(), _internal=True)
    return ingress.bind(model=model, model_id=spec.model.model_id)


def user_config(spec: ServiceSpec, key_hashes: tuple[str, ...]) -> dict[str, Any]:
    """What running replicas take over without a restart, and what tells a spec from another."""
    access = _access(spec, key_hashes).model_dump(mode="json")
    return {"access": access, "fingerprint": spec.fingerprint()}


def _access(spec: ServiceSpec, key_hashes: tuple[str, ...]) -> Access:
    """One replica's limits; before an ingress, those of all replicas it may come to serve.

    There the queue is left to Serve's handle, whose length the autoscaler sees.
    """
    scaling = spec.model.scaling
    ongoing, queued = scaling.max_ongoing_requests, scaling.max_queued_requests
    if spec.composed:
        ongoing, queued = ongoing * scaling.max_replicas + queued, 0
    return Access(
        key_hashes=key_hashes,
        max_ongoing_requests=ongoing,
        max_queued_requests=queued,
        retry_after_s=scaling.retry_after_s,
        max_body_bytes=int(spec.max_body_mib * 2**20),
    )


def _deployment(path: str, spec: ServiceSpec, **options: Any) -> Any:
    from ray import serve

    model = spec.model
    memory = {} if model.memory_gib is None else {"memory": int(model.memory_gib * 2**30)}
    bundles: list[dict[str, float]] = [dict(model.bundle) for _ in range(model.workers)]
    bundles[0] |= memory
    return serve.deployment(
        name=deployment_name(model),
        ray_actor_options={
            "num_cpus": 0,
            **memory,
            "runtime_env": {"env_vars": environment(model)},
        },
        placement_group_bundles=bundles,
        placement_group_strategy="PACK",
        autoscaling_config=autoscaling(model.scaling),
        max_constructor_retry_count=1,
        health_check_period_s=5,
        health_check_timeout_s=10,
        graceful_shutdown_timeout_s=10,
        **options,
    )(path).options(version=spec.engine_fingerprint(), _internal=True)


def autoscaling(scaling: ScalingSpec) -> dict[str, Any]:
    """Ray Serve's ``autoscaling_config``: the fields that are its own, absent ones left out."""
    own = scaling.model_dump(
        exclude={"max_ongoing_requests", "max_queued_requests", "retry_after_s"}, exclude_none=True
    )
    own.setdefault("initial_replicas", scaling.min_replicas)
    return own


def hashes(keys: list[str]) -> tuple[str, ...]:
    """The hash of each key."""
    return tuple(key_hash(key) for key in keys)
