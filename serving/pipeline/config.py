"""The configuration of a pipeline's ingress, and its calls to the model router."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from serving.gateway.context import RequestContext
from serving.guardrail.texts import RequestTexts
from serving.pipeline.dispatcher import ModelState
from serving.pipeline.router_rules import RoutingInput
from serving.spec.base import Strict
from serving.spec.guardrail import GuardrailSpec
from serving.spec.pipeline import PipelineSpec
from serving.spec.router import RouterSpec

if TYPE_CHECKING:
    from serving.spec.service import EndpointSpec

OUTPUT_LIMITS = ("max_completion_tokens", "max_output_tokens", "max_tokens")
"""Fields that limit an answer's tokens, on the routes that have them."""


class PipelineConfig(Strict):
    """The parts of a pipeline that its ingress needs; part of the ``user_config``."""

    guardrail: GuardrailSpec | None = Field(None, description="What checks texts.")
    router: RouterSpec | None = Field(None, description="Which model answers 'auto'.")
    capacity: dict[str, int] = Field(
        description="Concurrent requests through one ingress by model id, in the spec's order."
    )
    deployments: dict[str, str] = Field(description="Each model's deployment, by its id.")
    adapters: dict[str, str] = Field(
        default_factory=dict, description="The id of the model that each adapter belongs to."
    )
    always_on: tuple[str, ...] = Field((), description="Ids of the models that never sleep.")

    @property
    def sleepers(self) -> frozenset[str]:
        """Ids of the models that may have no replica until a request comes."""
        return frozenset(self.capacity) - frozenset(self.always_on)

    def is_adapter(self, name: str | None) -> bool:
        """Return whether a request's ``model`` names an adapter."""
        return name in self.adapters

    def model_of(self, name: str | None) -> str:
        """Return the id of the model that answers to a name; without one, the first model."""
        if name is None:
            return next(iter(self.capacity))
        return self.adapters.get(name, name)

    def state_reader(self, app: str) -> Callable[[], dict[str, ModelState]]:
        """Return a blocking function that asks Serve for the state of each model.

        Args:
            app: The Serve application's name.
        """

        def read() -> dict[str, ModelState]:
            from ray import serve

            deployments = serve.status().applications[app].deployments
            return {
                model: _state(deployments[name], model in self.always_on)
                for model, name in self.deployments.items()
                if name in deployments
            }

        return read


def _state(status: Any, always_on: bool) -> ModelState:
    if any(str(state) == "RUNNING" and count for state, count in status.replica_states.items()):
        return ModelState.RUNNING
    if always_on or status.status in ("UNHEALTHY", "DEPLOY_FAILED"):
        return ModelState.DOWN
    return ModelState.STARTING


def pipeline_config(
    spec: EndpointSpec, capacity: Mapping[str, int], deployments: Mapping[str, str]
) -> dict[str, Any]:
    """Return the :class:`PipelineConfig` of a spec as plain data.

    Args:
        spec: The endpoint.
        capacity: Concurrent requests by model id, through all ingress replicas together.
        deployments: Deployment names by model id.
    """
    pipeline = spec if isinstance(spec, PipelineSpec) else None
    ingresses = pipeline.ingress_replicas if pipeline else 1
    config = PipelineConfig(
        guardrail=pipeline.guardrail if pipeline else None,
        router=pipeline.router if pipeline else None,
        capacity={model: -(-number // ingresses) for model, number in capacity.items()},
        deployments=dict(deployments),
        adapters={name: m.model_id for m in spec.models for name in m.adapters},
        always_on=tuple(m.model_id for m in spec.models if m.scaling.min_replicas > 0),
    )
    return config.model_dump(mode="json")


async def pick_model(
    config: PipelineConfig,
    router: Any,
    texts: RequestTexts,
    context: RequestContext,
    budget: str | None,
) -> tuple[tuple[str, ...], str]:
    """Ask the model router which model answers a request for ``auto``.

    Args:
        config: The pipeline.
        router: Handle of the model router's deployment.
        texts: The request.
        context: The caller, and which models the caller may use.
        budget: Value of the request's budget header.

    Returns:
        The models that may answer, the router's choice first, and the reason for it.
    """
    spec, models = config.router, tuple(config.capacity)
    assert spec is not None
    limits = (texts.fields.get(name) for name in OUTPUT_LIMITS)
    routing_input = RoutingInput(
        texts=tuple(slot.text for slot in texts.conversation),
        max_tokens=next((limit for limit in limits if limit), None),
        tenant=context.tenant.name,
        budget=budget,
    )
    try:
        model, reason = await router.decide.remote(routing_input)
    except Exception as error:
        model = spec.default or models[0]
        reason = f"default: the router does not respond ({type(error).__name__})"
    first = models.index(model)
    order = (*models[first:], *models[:first])
    allowed = [name for name in order if context.config.may_use(context.tenant, name)] or [model]
    if allowed[0] != model:
        reason += f"; this key may not use {model}"
    return tuple(allowed if spec.fallback else allowed[:1]), reason
