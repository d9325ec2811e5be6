"""The service as data: strict, frozen, described. No import here is heavy."""

from __future__ import annotations

import hashlib
import json
import re
from difflib import get_close_matches
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from serving.errors import SpecError
from serving.tiny import TINY_MODEL_ID, tiny_model_path

TINY = "tiny"
"""The ``source`` that stands for the embedded model."""


class Strict(BaseModel):
    """Unknown keys fail, values do not change, and a failure is a :class:`SpecError`."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise SpecError(explain(error, type(self))) from None


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """One line a field: its path, the value given, what is wrong, and the way out."""
    return "\n".join(_explain_one(dict(item), model) for item in error.errors())


def _explain_one(item: dict[str, Any], model: type[BaseModel]) -> str:
    path = ".".join([model.__name__, *(str(part) for part in item["loc"])])
    value = repr(item["input"])
    shown = value if len(value) <= 80 else value[:77] + "..."
    if item["type"] == "extra_forbidden":
        return f"{path} = {shown}: there is no such field. {_nearest(item['loc'][-1], model)}"
    reason = str(item["msg"]).removeprefix("Value error, ")
    # A validator over several fields names them itself; their whole would drown it.
    whole = isinstance(item["input"], dict) and item["type"] != "missing"
    return reason if whole else f"{path} = {shown}: {reason}"


def _nearest(name: str, model: type[BaseModel]) -> str:
    close = get_close_matches(name, model.model_fields, n=1)
    known = ", ".join(model.model_fields)
    return f"Did you mean {close[0]!r}?" if close else f"The fields are: {known}."


class ScalingSpec(Strict):
    """How many replicas, and when. The names are Ray Serve's own (``AutoscalingConfig``)."""

    min_replicas: int = Field(1, ge=0, description="Fewest replicas; 0 lets the model sleep.")
    max_replicas: int = Field(1, ge=1, description="Most replicas the autoscaler may start.")
    initial_replicas: int | None = Field(
        None, ge=0, description="Replicas at first deployment; min_replicas when absent."
    )
    target_ongoing_requests: float = Field(
        8, gt=0, description="Average requests in progress a replica that the autoscaler aims at."
    )
    max_ongoing_requests: int = Field(
        64, ge=1, le=4096, description="Requests one replica works on at a time."
    )
    max_queued_requests: int = Field(
        128, ge=0, le=8192, description="Requests waiting at one replica; more are shed with 429."
    )
    upscale_delay_s: float = Field(10, ge=0, description="Seconds of need before a replica starts.")
    downscale_delay_s: float = Field(
        60, ge=0, description="Seconds of surplus before a replica stops."
    )
    downscale_to_zero_delay_s: float | None = Field(
        None, ge=0, description="Seconds idle before the last replica stops (min_replicas=0)."
    )
    metrics_interval_s: float = Field(
        2, gt=0, description="Seconds between the request counts that replicas report."
    )
    look_back_period_s: float = Field(
        10, gt=0, description="Seconds over which request counts are averaged."
    )
    retry_after_s: int = Field(
        1, ge=1, description="Seconds in the Retry-After header of a shed request."
    )

    @model_validator(mode="after")
    def _bounds_agree(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas = {self.max_replicas} is below min_replicas = "
                f"{self.min_replicas}; raise one or lower the other"
            )
        first = self.initial_replicas
        if first is not None and not self.min_replicas <= first <= self.max_replicas:
            raise ValueError(
                f"initial_replicas = {first} lies outside min_replicas..max_replicas = "
                f"{self.min_replicas}..{self.max_replicas}"
            )
        if self.target_ongoing_requests > self.max_ongoing_requests:
            raise ValueError(
                f"target_ongoing_requests = {self.target_ongoing_requests:g} exceeds "
                f"max_ongoing_requests = {self.max_ongoing_requests}, so no replica could reach it"
            )
        return self


class ModelSpec(Strict):
    """One model, the resources of one replica, and how it scales."""

    source: str = Field(
        TINY,
        min_length=1,
        description="Hugging Face id, local path, or 'tiny' for the embedded model.",
    )
    id: str | None = Field(
        None,
        pattern=r"^[\w./:-]+$",
        description="The name clients use; derived from source when absent.",
    )
    accelerator: Literal["cpu", "gpu"] = Field("cpu", description="What the engine computes on.")
    accelerator_type: str | None = Field(
        None, description="Ray's accelerator type, such as H100; any GPU when absent."
    )
    num_cpus: float = Field(1, gt=0, description="CPUs of each engine worker.")
    num_gpus: float | None = Field(
        None, gt=0, le=1, description="GPUs of each engine worker, 1 or a fraction; 1 when absent."
    )
    memory_gib: float | None = Field(
        None, gt=0, description="Memory reserved for a replica in GiB; an estimate when absent."
    )
    tensor_parallel_size: int = Field(1, ge=1, description="Engine workers that split each layer.")
    pipeline_parallel_size: int = Field(1, ge=1, description="Engine workers in a row of stages.")
    dtype: str = Field("bfloat16", description="Type of weights and activations.")
    max_model_len: int | None = Field(
        None, ge=16, description="Context length in tokens; the model's own when absent."
    )
    kv_cache_gib: float = Field(1, gt=0, description="KV cache of a CPU replica in GiB.")
    engine_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Any further vLLM engine arguments, by vLLM's names."
    )
    env: dict[str, str] = Field(
        default_factory=dict, description="Environment variables of the engine; never secrets."
    )
    scaling: ScalingSpec = Field(
        default_factory=ScalingSpec, description="How many replicas, and when."
    )

    @property
    def model_id(self) -> str:
        """The name that clients put into ``model``."""
        if self.id is not None:
            return self.id
        return TINY_MODEL_ID if self.source == TINY else self.source.rstrip("/").split("/")[-1]

    @property
    def path(self) -> str:
        """What vLLM loads: the embedded model's folder, or ``source`` as given."""
        return str(tiny_model_path()) if self.source == TINY else self.source

    @property
    def workers(self) -> int:
        """Engine workers of one replica: tensor- times pipeline-parallel size."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def bundle(self) -> dict[str, float]:
        """Ray resources of one engine worker."""
        cpus = {"CPU": self.num_cpus}
        return cpus if self.accelerator == "cpu" else {**cpus, "GPU": self.num_gpus or 1.0}

    @model_validator(mode="after")
    def _no_secrets(self) -> Self:
        for name in self.env:
            if re.search(r"(TOKEN|SECRET|PASSWORD|API_?KEY)$", name.upper()):
                raise ValueError(
                    f"env holds {name}, which anyone on the cluster could read there; set it in "
                    "the environment of the process that calls deploy instead"
                )
        return self

    @model_validator(mode="after")
    def _resources_agree(self) -> Self:
        if self.accelerator == "cpu":
            for name in ("num_gpus", "accelerator_type"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name} = {getattr(self, name)!r} has no meaning with "
                        "accelerator = 'cpu'; drop it or set accelerator = 'gpu'"
                    )
        if self.workers > 1 and self.num_gpus not in (None, 1.0):
            raise ValueError(
                f"num_gpus = {self.num_gpus} is a fraction, and {self.workers} parallel workers "
                "need a whole GPU each"
            )
        return self


class ServiceSpec(Strict):
    """A service: one model behind one OpenAI-compatible endpoint."""

    name: str = Field(
        "llm", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="The Serve application's name."
    )
    model: ModelSpec = Field(default_factory=ModelSpec, description="The model to serve.")
    route_prefix: str = Field(
        "/", pattern=r"^/([\w-]+(/[\w-]+)*)?$", description="Path under which the endpoint answers."
    )
    host: str = Field(
        "127.0.0.1", description="Address the endpoint and the replicas' HTTP ports listen on."
    )
    port: int = Field(8000, ge=0, le=65535, description="The endpoint's port; 0 picks a free one.")
    max_body_mib: float = Field(4, gt=0, le=64, description="Largest request body in MiB.")
    start_timeout_s: float = Field(
        600, gt=0, description="Seconds until a deployment that is not ready counts as failed."
    )

    @property
    def composed(self) -> bool:
        """Whether requests pass our own ingress (needed to wake a model that sleeps)."""
        return self.model.scaling.min_replicas == 0

    def fingerprint(self) -> str:
        """A hash of everything but who may call; equal fingerprints need no new deployment."""
        return _digest(self.model_dump(mode="json"))

    def engine_fingerprint(self) -> str:
        """A hash of what a running replica cannot change; a new one means new replicas."""
        model = self.model.model_dump(mode="json", exclude={"scaling"})
        return _digest({"model": model, "composed": self.composed, "max_body": self.max_body_mib})


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
