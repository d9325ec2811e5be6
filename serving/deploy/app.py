"""From a specification to a Serve application; also ``serve run serving.deploy.app:build
port=8000``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from serving.baselines import app as baselines
from serving.deploy.deployments import autoscaling, capacity, deployment, deployment_name
from serving.engine.engine_args import check
from serving.errors import SpecError
from serving.gateway.gate import Access
from serving.pipeline.config import compose
from serving.spec.baseline import BaselineSpec
from serving.spec.guardrail import GuardModel, PresidioGuardrail
from serving.spec.pipeline import PipelineSpec
from serving.spec.router import RouterSpec
from serving.spec.service import LIVE_FIELDS, EndpointSpec, ModelSpec, ServiceSpec, digest
from serving.spec.tenants import HASHES_VARIABLE, OWNER, Tenant, check_tenants

if TYPE_CHECKING:
    from ray.serve import Application

DIRECT_REPLICA = "serving.engine.replica.DirectReplica"
ENGINE_REPLICA = "serving.engine.replica.EngineReplica"
DIRECT_GROUP = "serving.engine.replica.DirectGroupReplica"
ENGINE_GROUP = "serving.engine.replica.EngineGroupReplica"
INGRESS = "serving.pipeline.ingress.Ingress"
GUARDRAIL = "serving.guardrail.deployment.Guardrail"
AUTO_ROUTER = "serving.pipeline.router.Router"
ROUTER = "ray.llm._internal.serve.core.ingress.router.LLMRouter"
PIPELINE = frozenset({"models", "guardrail", "router"})
"""Fields that only a pipeline has."""

JSON_FIELDS = PIPELINE | {"model", "limits", "tenants"}

BACKSTOP = 1024
"""Serve's own limits stand this far behind the gate's: a flood of wrong keys, each answered in
less than a millisecond, must not use up what valid requests wait in."""


def build(args: dict[str, Any]) -> Application:
    """Build from plain arguments: the spec's fields, and who may call.

    That is ``key_hashes`` of keys without quotas, or ``tenants`` with the fields of
    :class:`~serving.spec.tenants.Tenant`, or both; without either, the hashes in the variable
    ``LLM_WORKBENCH_KEY_HASHES``. On ``serve run``'s command line every value is text: there
    JSON_FIELDS are JSON, and ``key_hashes`` are separated by commas.
    """
    spec, callers = spec_from(args)
    tenants = tenants_from(callers or {"key_hashes": os.environ.get(HASHES_VARIABLE)})
    check_spec(spec)
    return application(spec, tenants)


def check_spec(spec: EndpointSpec) -> None:
    """Everything about a spec that can be refused before anything starts; a SpecError names it."""
    for model in spec.engines:
        check(model)
    guardrail = spec.guardrail if isinstance(spec, PipelineSpec) else None
    if isinstance(guardrail, PresidioGuardrail) and guardrail.recognizers:
        from serving.guardrail import presidio  # Presidio takes seconds to import

        presidio.check(guardrail)


def spec_from(args: Mapping[str, Any]) -> tuple[EndpointSpec, dict[str, Any]]:
    """The specification among plain arguments, and what they say of who may call.

    With ``models``, ``guardrail`` or ``router`` among the fields they are a PipelineSpec's, else a
    ServiceSpec's. Raises :class:`SpecError`.
    """
    fields = {
        name: _from_json(name, value) if name in JSON_FIELDS and isinstance(value, str) else value
        for name, value in args.items()
    }
    told = {name: fields.pop(name, None) for name in ("key_hashes", "tenants")}
    kind = PipelineSpec if fields.keys() & PIPELINE else ServiceSpec
    return kind(**fields), {name: value for name, value in told.items() if value}


def tenants_from(callers: Mapping[str, Any]) -> tuple[Tenant, ...]:
    """Who may call, from ``key_hashes`` and ``tenants`` as :func:`build` takes them."""
    key_hashes = callers.get("key_hashes") or ()
    if isinstance(key_hashes, str):
        key_hashes = [one.strip() for one in key_hashes.split(",")]
    owners = [
        Tenant(name=OWNER if not number else f"{OWNER}-{number + 1}", key_hash=one)
        for number, one in enumerate(key_hashes)
    ]
    tenants = (*owners, *(Tenant(**fields) for fields in callers.get("tenants") or ()))
    if not tenants:
        raise SpecError("key_hashes is missing: give the SHA-256 of each accepted API key.")
    check_tenants(tenants)
    return tenants


def _from_json(name: str, value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError as error:
        raise SpecError(
            f"{name} = {value!r} is not JSON ({error}). Give its fields as JSON."
        ) from None


def application(spec: EndpointSpec, tenants: tuple[Tenant, ...]) -> Application:
    """The direct path where one model always runs, else the composed path (DESIGN.md)."""
    return _composed(spec, tenants) if spec.composed else _direct(spec, tenants)


def _direct(spec: EndpointSpec, tenants: tuple[Tenant, ...]) -> Application:
    from ray import serve

    (only,) = spec.models
    scaling = only.scaling
    capacity = scaling.max_ongoing_requests + scaling.max_queued_requests
    options: dict[str, Any] = {
        "user_config": user_config(spec, tenants),
        "max_ongoing_requests": capacity + BACKSTOP,
        "max_queued_requests": BACKSTOP,
    }
    if isinstance(spec, BaselineSpec):
        model = baselines.replica(spec, **options)
    else:
        path = DIRECT_REPLICA if only.data_parallel_size == 1 else DIRECT_GROUP
        model = deployment(path, spec, only, **options).bind(_engine_fields(spec, only))
    router = serve.deployment(
        name="router", max_ongoing_requests=BACKSTOP, ray_actor_options={"num_cpus": 0}
    )(ROUTER).options(version=only.routing or "1", _internal=True)
    return model._with_ingress_request_router(router.bind(server=model))


def _composed(spec: EndpointSpec, tenants: tuple[Tenant, ...]) -> Application:
    from ray import serve

    handles = {"models": {one.model_id: _engine(spec, one) for one in spec.models}}
    if isinstance(spec, PipelineSpec):
        handles |= _helpers(spec)
    ingress = serve.deployment(
        name="ingress",
        num_replicas=spec.ingress_replicas if isinstance(spec, PipelineSpec) else 1,
        max_ongoing_requests=4 * BACKSTOP,
        max_queued_requests=BACKSTOP,
        ray_actor_options={"num_cpus": 0},
        user_config=user_config(spec, tenants),
    )(INGRESS).options(version=spec.ingress_fingerprint(), _internal=True)
    return ingress.bind(**handles)


def _helpers(spec: PipelineSpec) -> dict[str, Any]:
    """The deployments of a pipeline that answer nobody themselves."""
    guardrail, router = spec.guardrail, spec.router
    helpers: dict[str, Any] = {"guarded": guardrail is not None}
    if isinstance(guardrail, GuardModel):
        helpers["guardrail"] = _engine(spec, guardrail.model)
    elif isinstance(guardrail, PresidioGuardrail):
        helpers["guardrail"] = _presidio(guardrail)
    if router is not None:
        helpers["router"] = _router(router, tuple(model.model_id for model in spec.models))
    return helpers


def _presidio(guardrail: PresidioGuardrail) -> Application:
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


def _router(router: RouterSpec, models: tuple[str, ...]) -> Application:
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
        .options(version=digest(list(models)), _internal=True)
        .bind(models)
    )


def _engine(spec: EndpointSpec, model: ModelSpec) -> Application:
    """A model's deployment behind a handle."""
    return deployment(
        ENGINE_REPLICA if model.data_parallel_size == 1 else ENGINE_GROUP,
        spec,
        model,
        max_ongoing_requests=model.scaling.max_ongoing_requests,
        max_queued_requests=BACKSTOP,
    ).bind(_engine_fields(spec, model))


def _engine_fields(spec: EndpointSpec, model: ModelSpec) -> dict[str, Any]:
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
    return told | {"composition": compose(spec, capacities, names)}


def _access(spec: EndpointSpec, tenants: tuple[Tenant, ...]) -> Access:
    """One replica's limits; before an ingress, those of all replicas it may come to serve.

    There the queue is left to Serve's handle, whose length the autoscaler sees.
    """
    scaling = spec.models[0].scaling
    ongoing, queued = scaling.max_ongoing_requests, scaling.max_queued_requests
    if spec.composed:
        ongoing, queued = sum(capacity(model) for model in spec.models), 0
    return Access(
        tenants=tenants,
        limits=spec.limits,
        max_ongoing_requests=ongoing,
        max_queued_requests=queued,
        retry_after_s=scaling.retry_after_s,
    )
