"""The service as data: strict, frozen, described. No import here is heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from serving.spec.base import Strict
from serving.spec.limits import Limits
from serving.spec.model import LIVE_FIELDS, ModelSpec, digest


class EndpointSpec(Strict):
    """What one model behind an endpoint and a pipeline of several have in common."""

    name: str = Field(
        "llm", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="The Serve application's name."
    )
    route_prefix: str = Field(
        "/", pattern=r"^/([\w-]+(/[\w-]+)*)?$", description="Path under which the endpoint answers."
    )
    host: str = Field(
        "127.0.0.1", description="Address the endpoint and the replicas' HTTP ports listen on."
    )
    port: int = Field(8000, ge=0, le=65535, description="The endpoint's port; 0 picks a free one.")
    limits: Limits = Field(
        default_factory=Limits, description="What one request may ask for, whoever sends it."
    )
    start_timeout_s: float = Field(
        600, gt=0, description="Seconds until a deployment that is not ready counts as failed."
    )

    if TYPE_CHECKING:

        @property
        def models(self) -> tuple[ModelSpec, ...]:
            """The models that answer, in the order in which one stands in for another."""

    @property
    def engines(self) -> tuple[ModelSpec, ...]:
        """Every model that vLLM loads: those that answer, and one that guards."""
        return self.models

    @property
    def composed(self) -> bool:
        """Whether requests pass our own ingress (needed to wake a model that sleeps)."""
        return True

    def helpers(self) -> dict[str, float]:
        """CPUs of one replica of each deployment that loads no model, by the spec's field."""
        return {}

    @property
    def helpers_cpus(self) -> float:
        """CPUs of the deployments that load no model."""
        return 0.0

    def fingerprint(self) -> str:
        """A hash of everything but who may call; equal fingerprints need no new deployment."""
        return digest(self.model_dump(mode="json"))

    def engine_fingerprint(self, model: ModelSpec | None = None) -> str:
        """A hash of what a running replica of ``model`` (by default the first) cannot change.

        A new one means new replicas.
        """
        engine = (model or self.models[0]).model_dump(mode="json", exclude=LIVE_FIELDS)
        cap = self.limits.max_tokens
        return digest({"model": engine, "composed": self.composed, "max_tokens": cap})

    def ingress_fingerprint(self) -> str:
        """A hash of what a running ingress cannot change; a new one means new ones."""
        return self.engine_fingerprint()


class ServiceSpec(EndpointSpec):
    """A service: one model behind one OpenAI-compatible endpoint."""

    model: ModelSpec = Field(default_factory=ModelSpec, description="The model to serve.")

    @property
    def models(self) -> tuple[ModelSpec, ...]:
        """The one model."""
        return (self.model,)

    @property
    def composed(self) -> bool:
        """Whether requests pass our own ingress (needed to wake a model that sleeps)."""
        return self.model.scaling.min_replicas == 0
