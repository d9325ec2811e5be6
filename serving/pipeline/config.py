"""What the ingress has to know of its pipeline, and how it asks the router."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from serving.gateway.asgi import BUDGET_HEADER
from serving.guardrail.texts import places
from serving.pipeline.router_rules import RoutingInput
from serving.spec.base import Strict
from serving.spec.guardrail import GuardrailSpec
from serving.spec.pipeline import PipelineSpec
from serving.spec.router import RouterSpec

if TYPE_CHECKING:
    from serving.spec.service import EndpointSpec
    from serving.spec.tenants import Tenant


class PipelineConfig(Strict):
    """A pipeline without what only its other deployments need; part of the ``user_config``."""

    guardrail: GuardrailSpec | None = Field(None, description="What looks at texts.")
    router: RouterSpec | None = Field(None, description="Which model answers 'auto'.")
    capacity: dict[str, int] = Field(
        description="By model id, in the spec's order, requests at once through one ingress."
    )
    deployments: dict[str, str] = Field(description="Each model's deployment, by its id.")
    always_on: tuple[str, ...] = Field((), description="Ids of the models that never sleep.")

    def states(self, app: str) -> Callable[[], dict[str, bool]]:
        """Asks Serve which models are down; blocks while it does."""

        def ask() -> dict[str, bool]:
            from ray import serve

            deployments = serve.status().applications[app].deployments
            return {
                model: _down(deployments[name], model in self.always_on)
                for model, name in self.deployments.items()
                if name in deployments
            }

        return ask


def _down(status: Any, always_on: bool) -> bool:
    if any(str(state) == "RUNNING" and n for state, n in status.replica_states.items()):
        return False
    return always_on or status.status in ("UNHEALTHY", "DEPLOY_FAILED")


def compose(spec: EndpointSpec, capacity: Mapping[str, int], names: Mapping[str, str]) -> Any:
    """The composition of a spec as plain data; ``names`` are the models' deployments."""
    pipeline = spec if isinstance(spec, PipelineSpec) else None
    shares = pipeline.ingress_replicas if pipeline else 1
    made = PipelineConfig(
        guardrail=pipeline.guardrail if pipeline else None,
        router=pipeline.router if pipeline else None,
        capacity={model: -(-number // shares) for model, number in capacity.items()},
        deployments=dict(names),
        always_on=tuple(m.model_id for m in spec.models if m.scaling.min_replicas > 0),
    )
    return made.model_dump(mode="json")


async def choose(
    composition: PipelineConfig,
    router: Any,
    body: Any,
    headers: Mapping[str, str],
    tenant: Tenant | None,
) -> tuple[tuple[str, ...], str]:
    """The models that may answer ``auto``, the router's choice first, and its reason."""
    spec, models = composition.router, tuple(composition.capacity)
    assert spec is not None
    limit = getattr(body, "max_completion_tokens", None) or getattr(body, "max_tokens", None)
    facts = RoutingInput(
        texts=tuple(place.text for place in places(body)),
        max_tokens=limit,
        tenant=tenant.name if tenant else None,
        budget=headers.get(BUDGET_HEADER),
    )
    try:
        model, reason = await router.decide.remote(facts)
    except Exception as error:
        model = spec.default or models[0]
        reason = f"default: the router does not answer ({type(error).__name__})"
    at = models.index(model)
    order = (*models[at:], *models[:at])
    allowed = [one for one in order if tenant is None or tenant.may_use(one)] or [model]
    if allowed[0] != model:
        reason += f"; {model} is not this key's to use"
    return tuple(allowed if spec.fallback else allowed[:1]), reason
