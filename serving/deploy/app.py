"""From a specification to a Serve application; also ``serve run serving.deploy.app:build
port=8000``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from serving.deploy import deployments as baselines
from serving.deploy.deployments import (
    BACKSTOP,
    DIRECT_GROUP,
    DIRECT_REPLICA,
    deployment,
    engine_deployment,
    engine_fields,
    presidio_deployment,
    router_deployment,
    user_config,
)
from serving.deploy.preflight import check_spec
from serving.errors import SpecError
from serving.spec.baseline import BaselineSpec
from serving.spec.guardrail import GuardModel, PresidioGuardrail
from serving.spec.pipeline import PipelineSpec
from serving.spec.service import EndpointSpec, ServiceSpec
from serving.spec.tenants import HASHES_VARIABLE, OWNER, Tenant, check_tenants

if TYPE_CHECKING:
    from ray.serve import Application

INGRESS = "serving.pipeline.ingress.Ingress"
ROUTER = "ray.llm._internal.serve.core.ingress.router.LLMRouter"
PIPELINE = frozenset({"models", "guardrail", "router"})
"""Fields that only a pipeline has."""

JSON_FIELDS = PIPELINE | {"model", "limits", "tenants"}


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
        model = deployment(path, spec, only, **options).bind(engine_fields(spec, only))
    router = serve.deployment(
        name="router", max_ongoing_requests=BACKSTOP, ray_actor_options={"num_cpus": 0}
    )(ROUTER).options(version=only.routing or "1", _internal=True)
    return model._with_ingress_request_router(router.bind(server=model))


def _composed(spec: EndpointSpec, tenants: tuple[Tenant, ...]) -> Application:
    from ray import serve

    handles = {"models": {one.model_id: engine_deployment(spec, one) for one in spec.models}}
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
        helpers["guardrail"] = engine_deployment(spec, guardrail.model)
    elif isinstance(guardrail, PresidioGuardrail):
        helpers["guardrail"] = presidio_deployment(guardrail)
    if router is not None:
        helpers["router"] = router_deployment(
            router, tuple(model.model_id for model in spec.models)
        )
    return helpers
