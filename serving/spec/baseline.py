"""Baselines: a service's model, served by transformers with one of four batching strategies."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from serving.spec.base import Strict
from serving.spec.model import ModelSpec, short_hash
from serving.spec.service import ServiceSpec

ENGINE_KWARGS = ("load_format", "tokenizer")
"""The vLLM engine arguments that have the same meaning for transformers."""


class OneAtATime(Strict):
    """Call `generate` for one request after the other, as in a first script."""

    kind: Literal["one"] = Field("one", description="The kind of strategy.")

    @property
    def batch_size(self) -> int:
        """Requests in a batch: 1."""
        return 1

    @property
    def label(self) -> str:
        """Name of the strategy in tables."""
        return "transformers, one at a time"


class StaticBatches(Strict):
    """Call `generate` for full batches. The next batch waits until every request has finished."""

    kind: Literal["static"] = Field("static", description="The kind of strategy.")
    batch_size: int = Field(32, ge=1, le=4096, description="Requests in a full batch, 1 to 4096.")
    quiet_s: float = Field(
        0.5,
        gt=0,
        le=60,
        description="Seconds without a new request after which a batch starts that is not full, up "
        "to 60. The last requests of a load would never start otherwise.",
    )

    @property
    def label(self) -> str:
        """Name of the strategy in tables."""
        return f"transformers, static batches of {self.batch_size}"


class DynamicBatches(Strict):
    """Call `generate` for the requests that arrive within a time window.

    The next batch waits until every request has finished.
    """

    kind: Literal["dynamic"] = Field("dynamic", description="The kind of strategy.")
    batch_size: int = Field(
        32, ge=1, le=4096, description="Maximum number of requests in a batch, 1 to 4096."
    )
    window_s: float = Field(
        0.05,
        ge=0,
        le=60,
        description="Seconds that the first request of a batch waits for others, up to 60.",
    )

    @property
    def label(self) -> str:
        """Name of the strategy in tables."""
        return f"transformers, dynamic batches of up to {self.batch_size}"


class Continuous(Strict):
    """Use transformers' own continuous batching, the engine behind `generate_batch`."""

    kind: Literal["continuous"] = Field("continuous", description="The kind of strategy.")
    max_requests: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Maximum number of requests in progress at once, 1 to 4096; default: "
        "transformers chooses.",
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="More fields of transformers' ContinuousBatchingConfig, by their names.",
    )

    @property
    def label(self) -> str:
        """Name of the strategy in tables."""
        return "transformers, continuous batching"


Strategy = Annotated[
    OneAtATime | StaticBatches | DynamicBatches | Continuous, Field(discriminator="kind")
]


def strategies(batch_size: int = 32) -> dict[str, Strategy]:
    """Return all strategies by kind.

    Args:
        batch_size: Requests in a batch, for the static and the dynamic strategy.
    """
    return {
        "one": OneAtATime(),
        "static": StaticBatches(batch_size=batch_size),
        "dynamic": DynamicBatches(batch_size=batch_size),
        "continuous": Continuous(),
    }


class BaselineSpec(ServiceSpec):
    """One model served by transformers: the fields of a service, and a batching strategy.

    Decoding is greedy. Replicas, limits, keys and routes work as for a service on the direct path.
    On a CPU the engine has `model.num_cpus` threads and `model.kv_cache_gib` of KV cache, as vLLM
    has; on a GPU its share of the memory is `model.num_gpus`.
    """

    name: str = Field(
        "baseline",
        pattern=r"^[a-z0-9][a-z0-9-]{0,62}$",
        description="Name of the Serve application: lowercase letters, digits and hyphens.",
    )
    strategy: Strategy = Field(
        default_factory=StaticBatches, description="How requests are batched."
    )
    attention: str = Field("sdpa", min_length=1, description="transformers' `attn_implementation`.")
    generate: dict[str, Any] = Field(
        default_factory=dict,
        description="More fields of transformers' GenerationConfig, such as cache_implementation.",
    )

    @classmethod
    def from_service(cls, service: ServiceSpec, strategy: Strategy) -> BaselineSpec:
        """Return a baseline with the model, resources and limits of a service.

        It has its own name and route. Adapters, vLLM's front end, and vLLM's engine arguments
        that have no meaning for transformers, are left out.
        """
        arguments = service.model.engine_kwargs.items()
        engine_kwargs = {name: value for name, value in arguments if name in ENGINE_KWARGS}
        return cls(
            name=f"{service.name}-{strategy.kind}",
            route_prefix=f"{service.route_prefix.rstrip('/')}/{strategy.kind}",
            host=service.host,
            port=0,
            limits=service.limits,
            start_timeout_s=service.start_timeout_s,
            model=service.model.model_copy(
                update={"engine_kwargs": engine_kwargs, "adapters": {}, "frontend": "python"}
            ),
            strategy=strategy,
        )

    def engine_fingerprint(self, model: ModelSpec | None = None) -> str:
        """Return a service's fingerprint, extended by the baseline's own fields."""
        own = self.model_dump(mode="json", include={"strategy", "attention", "generate"})
        return short_hash({"service": super().engine_fingerprint(model), **own})

    @model_validator(mode="after")
    def _check_transformers(self) -> Self:
        if self.model.workers > 1:
            raise ValueError(
                "model: tensor_parallel_size and pipeline_parallel_size must be 1, because a "
                f"baseline runs on one device, got {self.model.workers} workers; set both to 1"
            )
        if self.model.scaling.min_replicas == 0:
            raise ValueError(
                "model.scaling.min_replicas must be at least 1, because a baseline cannot scale "
                "to zero, got 0; set it to 1"
            )
        if self.model.disaggregated:
            raise ValueError(
                "model.disaggregated must be left out, because a baseline's engine reads prompts "
                "and generates on one device; remove it from the baseline's model"
            )
        if self.model.adapters:
            raise ValueError(
                "model.adapters must be left out, because a baseline serves no LoRA adapters, got "
                f"{', '.join(self.model.adapters)}; remove it from the baseline's model"
            )
        if self.model.frontend != "python":
            raise ValueError(
                "model.frontend must be left out, because a baseline has a server of its own, got "
                f"{self.model.frontend!r}; remove it from the baseline's model"
            )
        for name, value in self.model.engine_kwargs.items():
            if name not in ENGINE_KWARGS:
                raise ValueError(
                    f"model.engine_kwargs must have only {' and '.join(ENGINE_KWARGS)}, got "
                    f"{name} = {value!r}; remove it from the baseline's model"
                )
        return self
