"""Several deployments behind one endpoint, as data: guardrail, router, one or more models."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from serving.spec.guardrail import GuardModel, GuardrailSpec, PresidioGuardrail
from serving.spec.model import ModelSpec, digest
from serving.spec.router import AUTO, RouterSpec
from serving.spec.service import EndpointSpec

RESERVED = ("guardrail", "router", "ingress")
"""Names of our own deployments, which a model's deployment may not take."""


class PipelineSpec(EndpointSpec):
    """One or more models, an optional guardrail and router, behind one OpenAI endpoint.

    Each is a Ray Serve deployment with its own resources and scaling. A request that names a model
    gets it; ``model="auto"`` leaves the choice to the router.
    """

    models: tuple[ModelSpec, ...] = Field(
        (ModelSpec(),),
        min_length=1,
        description="The models that answer, best first: each may stand in for the one before.",
    )
    guardrail: GuardrailSpec | None = Field(
        None, description="What looks at prompts and answers; nothing does when absent."
    )
    router: RouterSpec | None = Field(
        None, description="Which model answers 'auto'; every request names one when absent."
    )
    ingress_replicas: int = Field(1, ge=1, le=64, description="Replicas of the ingress.")

    @property
    def engines(self) -> tuple[ModelSpec, ...]:
        """Every model that vLLM loads: those that answer, and one that guards."""
        guards = (self.guardrail.model,) if isinstance(self.guardrail, GuardModel) else ()
        return self.models + guards

    def helpers(self) -> dict[str, float]:
        """CPUs of one replica of each deployment that loads no model, by the spec's field."""
        named = {"guardrail": self.guardrail, "router": self.router}
        return {
            name: one.num_cpus
            for name, one in named.items()
            if isinstance(one, PresidioGuardrail | RouterSpec)
        }

    @property
    def helpers_cpus(self) -> float:
        """CPUs of the deployments that load no model."""
        guardrail, router = self.guardrail, self.router
        cpus = router.num_cpus * router.replicas if router else 0.0
        if isinstance(guardrail, PresidioGuardrail):
            cpus += guardrail.num_cpus * guardrail.scaling.max_replicas
        return cpus

    def ingress_fingerprint(self) -> str:
        """A hash of what a running ingress cannot change: which other deployments there are."""
        guarded = self.guardrail.kind if self.guardrail else None
        names = [model.model_id for model in self.engines]
        return digest({"engines": names, "guardrail": guarded, "router": bool(self.router)})

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        ids = [model.model_id for model in self.engines]
        twice = sorted({one for one in ids if ids.count(one) > 1})
        if twice:
            raise ValueError(
                f"models: {', '.join(twice)} stands there more than once; give each model an id "
                "of its own"
            )
        taken = sorted({AUTO, *RESERVED} & set(ids))
        if taken:
            raise ValueError(f"models: the id {taken[0]!r} has a meaning of its own; set another")
        served = [model.model_id for model in self.models]
        unknown = sorted(self.router.named() - set(served)) if self.router else []
        if unknown:
            raise ValueError(
                f"router names {', '.join(unknown)}, but the models are {', '.join(served)}"
            )
        return self
