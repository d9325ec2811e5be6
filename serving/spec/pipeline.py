"""The pipeline: a guardrail, a router and one or more models behind one endpoint."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from serving.spec.guardrail import GuardModel, GuardrailSpec, PresidioGuardrail
from serving.spec.model import ModelSpec, served_names, short_hash
from serving.spec.router import AUTO, RouterSpec
from serving.spec.service import EndpointSpec

RESERVED = ("guardrail", "router", "ingress")
"""Names of the pipeline's own deployments, which no model may take."""


class PipelineSpec(EndpointSpec):
    """One or more models, with an optional guardrail and router, behind one OpenAI endpoint.

    Each is a Ray Serve deployment with its own resources and scaling. A request names its model;
    with ``model="auto"`` the router chooses.
    """

    models: tuple[ModelSpec, ...] = Field(
        (ModelSpec(),),
        min_length=1,
        description="The models that answer, best first; each may replace another one.",
    )
    guardrail: GuardrailSpec | None = Field(
        None, description="Guardrail for prompts and answers; default: none."
    )
    router: RouterSpec | None = Field(
        None, description="Router for model 'auto'; default: every request must name a model."
    )
    ingress_replicas: int = Field(
        1, ge=1, le=64, description="Replicas of the ingress deployment, 1 to 64."
    )

    @property
    def engines(self) -> tuple[ModelSpec, ...]:
        """All models that vLLM loads: those that answer, and a guard model."""
        guards = (self.guardrail.model,) if isinstance(self.guardrail, GuardModel) else ()
        return self.models + guards

    def auxiliary_deployments(self) -> dict[str, float]:
        """Return the CPUs of one replica of each deployment without an engine, by field name."""
        parts = {"guardrail": self.guardrail, "router": self.router}
        return {
            name: part.num_cpus
            for name, part in parts.items()
            if isinstance(part, PresidioGuardrail | RouterSpec)
        }

    @property
    def auxiliary_cpus(self) -> float:
        """CPUs of all replicas of the deployments without an engine."""
        guardrail, router = self.guardrail, self.router
        cpus = router.num_cpus * router.replicas if router else 0.0
        if isinstance(guardrail, PresidioGuardrail):
            cpus += guardrail.num_cpus * guardrail.scaling.max_replicas
        return cpus

    def ingress_fingerprint(self) -> str:
        """Return a hash of what a running ingress cannot change: the other deployments."""
        guardrail = self.guardrail.kind if self.guardrail else None
        names = [model.model_id for model in self.engines]
        return short_hash({"engines": names, "guardrail": guardrail, "router": bool(self.router)})

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        if split := [model.model_id for model in self.engines if model.disaggregated]:
            raise ValueError(
                f"models of a pipeline must not be disaggregated, got {split[0]!r}; deploy it as a "
                "ServiceSpec"
            )
        ids = [model.model_id for model in self.engines]
        duplicates = sorted({name for name in ids if ids.count(name) > 1})
        if duplicates:
            raise ValueError(
                f"models must have unique ids, got {', '.join(duplicates)} more than once; set "
                "the id of each model"
            )
        taken = sorted({AUTO, *RESERVED} & set(ids))
        if taken:
            raise ValueError(f"models must not have the reserved id {taken[0]!r}; set another id")
        if AUTO in served_names(self.models):
            raise ValueError(
                f"adapters must not have the name {AUTO!r}, which selects the router; "
                "give the adapter another name"
            )
        served = [model.model_id for model in self.models]
        unknown = sorted(self.router.model_ids() - set(served)) if self.router else []
        if unknown:
            raise ValueError(
                f"router must name models of the pipeline, got {', '.join(unknown)}; the models "
                f"are {', '.join(served)}"
            )
        return self
