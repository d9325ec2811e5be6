"""The builder of the Serve application: ``serve run serving.deploy.app:build port=8000``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from serving.compat.ray import with_ingress_router
from serving.deploy.arguments import spec_from, tenants_from
from serving.deploy.deployments import (
    direct_deployment,
    engine_deployment,
    ingress_deployment,
    llm_router_deployment,
    presidio_deployment,
    router_deployment,
)
from serving.deploy.preflight import check_spec
from serving.spec.guardrail import GuardModel, PresidioGuardrail
from serving.spec.model import PrefillModel
from serving.spec.pipeline import PipelineSpec
from serving.spec.service import EndpointSpec
from serving.spec.tenants import HASHES_VARIABLE, Tenant

if TYPE_CHECKING:
    from ray.serve import Application


def build(args: dict[str, Any]) -> Application:
    """Build the application from plain arguments: the fields of the spec, and the callers.

    The callers are ``key_hashes``, hashes of keys without quotas, or ``tenants`` with the fields of
    :class:`~serving.spec.tenants.Tenant`, or both. Without either, the hashes are
    read from the variable ``LLM_WORKBENCH_KEY_HASHES``. On the command line of ``serve run`` every
    value is text: the fields in :data:`~serving.deploy.arguments.JSON_FIELDS` are JSON there, and
    ``key_hashes`` are separated by commas.

    Raises:
        SpecError: An argument is invalid, or no key is given.
    """
    spec, callers = spec_from(args)
    tenants = tenants_from(callers or {"key_hashes": os.environ.get(HASHES_VARIABLE)})
    check_spec(spec)
    return application(spec, tenants)


def application(
    spec: EndpointSpec, tenants: tuple[Tenant, ...], surge_percent: int = 0
) -> Application:
    """Return the direct path for one model that always runs, else the composed path.

    Args:
        spec: The specification.
        tenants: Who may call.
        surge_percent: Serve's ``max_surge_percent`` of the engines: with 0, an update stops old
            replicas before it starts new ones, which need no free resources then.
    """
    build_path = _composed if spec.composed else _direct
    return build_path(spec, tenants, surge_percent)


def _direct(spec: EndpointSpec, tenants: tuple[Tenant, ...], surge_percent: int) -> Application:
    (model,) = spec.models
    prefill = next((each for each in spec.engines if isinstance(each, PrefillModel)), None)
    replicas = direct_deployment(spec, model, tenants, surge_percent, prefill)
    return with_ingress_router(replicas, llm_router_deployment(model, replicas))


def _composed(spec: EndpointSpec, tenants: tuple[Tenant, ...], surge_percent: int) -> Application:
    models = {m.model_id: engine_deployment(spec, m, surge_percent) for m in spec.models}
    auxiliary = _auxiliary(spec, surge_percent) if isinstance(spec, PipelineSpec) else {}
    return ingress_deployment(spec, tenants, models=models, **auxiliary)


def _auxiliary(spec: PipelineSpec, surge_percent: int) -> dict[str, Any]:
    """The deployments of a pipeline that check or route requests, as the ingress takes them."""
    guardrail, router = spec.guardrail, spec.router
    arguments: dict[str, Any] = {}
    if isinstance(guardrail, GuardModel):
        arguments["guardrail"] = engine_deployment(spec, guardrail.model, surge_percent)
    elif isinstance(guardrail, PresidioGuardrail):
        arguments["guardrail"] = presidio_deployment(guardrail)
    if router is not None:
        models = tuple(model.model_id for model in spec.models)
        arguments["router"] = router_deployment(router, models)
    return arguments
