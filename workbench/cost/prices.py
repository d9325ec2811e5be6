"""Prices of nodes and replicas."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from serving.spec.base import Strict
from serving.spec.guardrail import PresidioGuardrail
from serving.spec.model import ModelSpec, deployment_name
from serving.spec.pipeline import PipelineSpec
from serving.spec.service import EndpointSpec
from workbench.errors import SettingError

Dollars = Annotated[float, Field(ge=0)]


class NodePrice(Strict):
    """The price of a whole node, as in a cloud's price list."""

    hour: Dollars = Field(description="$ per hour of one node.")
    cpus: float = Field(gt=0, description="CPUs of such a node.")
    gpus: float = Field(0, ge=0, description="GPUs of such a node.")


class Prices(Strict):
    """Prices in $ per hour, by resource or by node, as your provider bills them."""

    gpu_hour: Dollars | None = Field(None, description="$ per hour of one GPU.")
    gpu_hour_by_type: dict[str, Dollars] = Field(
        default_factory=dict,
        description="$ per hour of one GPU by Ray's accelerator type, such as H100.",
    )
    cpu_hour: Dollars | None = Field(None, description="$ per hour of one CPU.")
    node: NodePrice | None = Field(
        None, description="Price of a whole node, instead of prices by resource."
    )
    energy_kwh: Dollars | None = Field(
        None, description="$ per kWh of the GPUs. Leave it out if the hourly price includes it."
    )
    output_weight: float = Field(
        4,
        gt=0,
        description="Weight of an output token relative to an input token, for split prices.",
    )
    currency: Literal["$"] = Field("$", description="Currency of all prices.")

    @model_validator(mode="after")
    def _check_billed_once(self) -> Self:
        by_resource = [n for n in ("gpu_hour", "gpu_hour_by_type", "cpu_hour") if self._is_set(n)]
        if self.node and by_resource:
            raise ValueError(
                f"Prices.node and {', '.join(by_resource)} would bill the same twice; drop one"
            )
        if not self.node and not by_resource:
            raise ValueError("Prices has no price: give gpu_hour, cpu_hour or node")
        return self

    def _is_set(self, name: str) -> bool:
        return getattr(self, name) not in (None, {})

    def replica_hour(self, model: ModelSpec) -> float:
        """Return $ per hour of one replica of `model`.

        Raises:
            SettingError: If a price is missing.
        """
        cpus = model.worker_resources["CPU"] * model.workers
        gpus = model.worker_resources.get("GPU", 0.0) * model.workers
        return self._hour(cpus, gpus, model.model_id, model.accelerator_type)

    def cpus_hour(self, cpus: float, user: str) -> float:
        """Return $ per hour of `cpus` CPUs, which `user` needs.

        Raises:
            SettingError: If a price is missing.
        """
        return self._hour(cpus, 0.0, user)

    def per_replica_hour(self, spec: EndpointSpec) -> dict[str, float]:
        """Return $ per replica-hour by deployment: every engine, guardrail and router of `spec`.

        Raises:
            SettingError: If a price is missing.
        """
        per_hour = {deployment_name(model): self.replica_hour(model) for model in spec.engines}
        if isinstance(spec, PipelineSpec):
            if isinstance(spec.guardrail, PresidioGuardrail):
                per_hour["guardrail"] = self.cpus_hour(spec.guardrail.num_cpus, "guardrail")
            if spec.router is not None:
                per_hour["router"] = self.cpus_hour(spec.router.num_cpus, "router")
        return per_hour

    def _hour(
        self, cpus: float, gpus: float, user: str, accelerator_type: str | None = None
    ) -> float:
        if self.node:
            if gpus and not self.node.gpus:
                raise SettingError(
                    f"prices.node.gpus is 0, but {user} runs on a GPU: give the GPUs of a node"
                )
            return self.node.hour * max(cpus / self.node.cpus, gpus and gpus / self.node.gpus)
        gpu_hour = self.gpu_hour_by_type.get(accelerator_type or "", self.gpu_hour)
        if gpus and gpu_hour is None:
            card = "a GPU" if accelerator_type is None else f"type {accelerator_type!r}"
            raise SettingError(f"prices.gpu_hour is missing, and {user} runs on {card}: give it")
        if not gpus and self.cpu_hour is None:
            raise SettingError(f"prices.cpu_hour is missing, and {user} runs on CPUs: give it")
        return gpus * (gpu_hour or 0.0) + cpus * (self.cpu_hour or 0.0)
