"""One model: its source, the resources of a replica, and how it scales."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from serving.cpu import fast_bfloat16
from serving.models.embedded import EMBEDDED, tiny_model_path
from serving.spec.base import Strict
from serving.spec.scaling import ScalingSpec

Routing = Literal["round_robin", "power_of_two", "prefix_aware"]


TINY = "tiny"
"""The ``source`` that stands for the embedded model."""


LIVE_FIELDS = {"scaling", "routing", "health_check_period_s", "health_check_timeout_s"}
"""Fields of a ModelSpec that running replicas take over without a restart."""


class ModelSpec(Strict):
    """One model, the resources of one replica, and how it scales."""

    source: str = Field(
        TINY,
        min_length=1,
        description="Hugging Face id, local path, or an embedded model: 'tiny', 'nano' (smaller).",
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
    data_parallel_size: int = Field(
        1, ge=1, description="Replicas that share the experts of a sparse model, as one group."
    )
    expert_parallel: bool = Field(
        False, description="Whole experts on each worker of a sparse model, not slices of all."
    )
    placement: Literal["PACK", "STRICT_PACK", "SPREAD", "STRICT_SPREAD"] | None = Field(
        None,
        description="Ray's strategy for a replica's workers; absent: PACK on GPUs, and on CPUs "
        "STRICT_PACK, as they are processes of one node there.",
    )
    dtype: str = Field(
        "auto",
        description="Type of weights and activations; auto: bfloat16, or float32 on a CPU that "
        "has no instructions for it.",
    )
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
    routing: Routing | None = Field(
        None,
        description="How a request's replica is chosen, by Ray Serve's own policies; when absent "
        "round_robin, and power_of_two where our ingress stands before the model.",
    )
    health_check_period_s: float = Field(
        5, gt=0, description="Seconds between two looks at whether a replica's engine answers."
    )
    health_check_timeout_s: float = Field(
        10,
        gt=0,
        description="Seconds an engine has for an answer; at the third miss in a row its replica "
        "is replaced. Longer than the longest step of the engine.",
    )
    scaling: ScalingSpec = Field(
        default_factory=ScalingSpec, description="How many replicas, and when."
    )

    @property
    def model_id(self) -> str:
        """The name that clients put into ``model``."""
        if self.id is not None:
            return self.id
        return EMBEDDED.get(self.source) or self.source.rstrip("/").split("/")[-1]

    @property
    def path(self) -> str:
        """What vLLM loads: an embedded model's folder, or ``source`` as given."""
        return str(tiny_model_path(name=self.source)) if self.embedded else self.source

    @property
    def embedded(self) -> bool:
        """Whether it is one of the models that come with this package."""
        return self.source in EMBEDDED

    @property
    def tokenizer(self) -> str:
        """Where the tokenizer lies: with the model, unless an engine argument names another."""
        return str(self.engine_kwargs.get("tokenizer") or self.path)

    @property
    def number_type(self) -> str:
        """The type of weights and activations, ``dtype`` with ``auto`` decided."""
        if self.dtype != "auto":
            return self.dtype
        slow = self.accelerator == "cpu" and not fast_bfloat16()
        return "float32" if slow else "bfloat16"

    @property
    def workers(self) -> int:
        """Engine workers of one replica: tensor- times pipeline-parallel size."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def bundle(self) -> dict[str, float]:
        """Ray resources of one engine worker."""
        cpus = {"CPU": self.num_cpus}
        if self.accelerator == "cpu":
            return cpus
        # A sliver, as Ray itself asks for: it chooses the nodes and uses nothing up.
        kind = {f"accelerator_type:{self.accelerator_type}": 0.001} if self.accelerator_type else {}
        return {**cpus, "GPU": self.num_gpus or 1.0, **kind}

    @property
    def strategy(self) -> str:
        """Ray's placement strategy for the workers of a replica."""
        return self.placement or ("STRICT_PACK" if self.accelerator == "cpu" else "PACK")

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
            if self.data_parallel_size > 1 or self.expert_parallel:
                name = "data_parallel_size" if self.data_parallel_size > 1 else "expert_parallel"
                raise ValueError(
                    f"{name} = {getattr(self, name)!r}: vLLM's CPU build cannot share experts "
                    "among workers; drop it or set accelerator = 'gpu'"
                )
            if self.workers > 1 and self.strategy != "STRICT_PACK":
                raise ValueError(
                    f"placement = {self.placement!r}: the {self.workers} workers of a CPU replica "
                    "are processes of one node; drop it, or set accelerator = 'gpu'"
                )
        if self.data_parallel_size > 1 and self.placement is not None:
            raise ValueError(
                f"placement = {self.placement!r} has no effect with data_parallel_size = "
                f"{self.data_parallel_size}, whose replicas Ray Serve places as one group; drop it"
            )
        if self.workers > 1 and self.num_gpus not in (None, 1.0):
            raise ValueError(
                f"num_gpus = {self.num_gpus} is a fraction, and {self.workers} parallel workers "
                "need a whole GPU each"
            )
        return self


def digest(value: Any) -> str:
    """A short hash of plain data, the same in every process."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def deployment_name(model: ModelSpec) -> str:
    """The model's deployment, as Serve's status and metrics name it."""
    return model.model_id.replace("/", "--").replace(".", "_")


def capacity(model: ModelSpec) -> int:
    """Requests that a model may have at once, at work in all its replicas or queued for them."""
    scaling = model.scaling
    return scaling.max_ongoing_requests * scaling.max_replicas + scaling.max_queued_requests
