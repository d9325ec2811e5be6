"""A baseline as data: the model of a service, served by transformers in one of four ways."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from serving.spec.base import Strict
from serving.spec.model import ModelSpec, digest
from serving.spec.service import ServiceSpec

ENGINE_KWARGS = ("load_format", "tokenizer")
"""Of vLLM's engine arguments, those that mean the same to transformers."""


class OneAtATime(Strict):
    """`generate` for one request after the other, as in a first script."""

    kind: Literal["one"] = Field("one", description="One request at a time.")

    @property
    def batch_size(self) -> int:
        """Requests of a batch."""
        return 1

    @property
    def label(self) -> str:
        """Its name in a table."""
        return "transformers, one at a time"


class StaticBatches(Strict):
    """`generate` for a full batch, padded to its longest; the next waits until all have ended."""

    kind: Literal["static"] = Field("static", description="Batches of a fixed size.")
    batch_size: int = Field(32, ge=1, le=4096, description="Requests of a full batch.")
    quiet_s: float = Field(
        0.5,
        gt=0,
        le=60,
        description="Seconds without a new request after which a batch goes that is not full; "
        "without it the last requests of a load would wait forever.",
    )

    @property
    def label(self) -> str:
        """Its name in a table."""
        return f"transformers, static batches of {self.batch_size}"


class DynamicBatches(Strict):
    """`generate` for those who came within a time window; the next waits until all have ended."""

    kind: Literal["dynamic"] = Field("dynamic", description="Batches of who came in a window.")
    batch_size: int = Field(32, ge=1, le=4096, description="Most requests of a batch.")
    window_s: float = Field(
        0.05, ge=0, le=60, description="Seconds that a batch's first request waits for others."
    )

    @property
    def label(self) -> str:
        """Its name in a table."""
        return f"transformers, dynamic batches of up to {self.batch_size}"


class Continuous(Strict):
    """transformers' own continuous batching, which `generate_batch` runs on."""

    kind: Literal["continuous"] = Field("continuous", description="transformers' own.")
    max_requests: int | None = Field(
        None, ge=1, le=4096, description="Most requests at work; transformers' choice when absent."
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="Any further fields of transformers' ContinuousBatchingConfig, by its names.",
    )

    @property
    def label(self) -> str:
        """Its name in a table."""
        return "transformers, continuous batching"


Strategy = Annotated[
    OneAtATime | StaticBatches | DynamicBatches | Continuous, Field(discriminator="kind")
]


def strategies(batch_size: int = 32) -> dict[str, Strategy]:
    """All of them by kind, those that make batches with batches of `batch_size`."""
    return {
        "one": OneAtATime(),
        "static": StaticBatches(batch_size=batch_size),
        "dynamic": DynamicBatches(batch_size=batch_size),
        "continuous": Continuous(),
    }


class BaselineSpec(ServiceSpec):
    """One model served by transformers: the same fields as a service, and a strategy.

    Greedy decoding only. Replicas, limits, keys and routes are those of a service on the direct
    path. On a CPU the engine has `model.num_cpus` threads and may hold `model.kv_cache_gib` of keys
    and values, as vLLM; on a GPU its share of the card's memory is `model.num_gpus`.
    """

    name: str = Field(
        "baseline",
        pattern=r"^[a-z0-9][a-z0-9-]{0,62}$",
        description="The Serve application's name.",
    )
    strategy: Strategy = Field(
        default_factory=StaticBatches, description="How requests come into batches."
    )
    attention: str = Field("sdpa", min_length=1, description="transformers' `attn_implementation`.")
    generate: dict[str, Any] = Field(
        default_factory=dict,
        description="Any further fields of transformers' GenerationConfig, such as "
        "cache_implementation.",
    )

    @classmethod
    def beside(cls, service: ServiceSpec, strategy: Strategy) -> BaselineSpec:
        """The same model, resources and limits as `service`, on a route of its own beside it.

        vLLM's engine arguments that mean nothing to transformers are left out.
        """
        given = service.model.engine_kwargs.items()
        kept = {name: value for name, value in given if name in ENGINE_KWARGS}
        return cls(
            name=f"{service.name}-{strategy.kind}",
            route_prefix=f"{service.route_prefix.rstrip('/')}/{strategy.kind}",
            host=service.host,
            port=0,
            limits=service.limits,
            start_timeout_s=service.start_timeout_s,
            model=service.model.model_copy(update={"engine_kwargs": kept}),
            strategy=strategy,
        )

    def engine_fingerprint(self, model: ModelSpec | None = None) -> str:
        """As a service's, and what only a baseline has."""
        own = self.model_dump(mode="json", include={"strategy", "attention", "generate"})
        return digest({"service": super().engine_fingerprint(model), **own})

    @model_validator(mode="after")
    def _transformers_can(self) -> Self:
        if self.model.workers > 1:
            raise ValueError(
                f"model: tensor- times pipeline-parallel size is {self.model.workers}, but a "
                "baseline's model lies on one device; set both to 1"
            )
        if self.model.scaling.min_replicas == 0:
            raise ValueError(
                "model.scaling.min_replicas = 0, but a baseline does not sleep; set it to 1"
            )
        for name, value in self.model.engine_kwargs.items():
            if name not in ENGINE_KWARGS:
                raise ValueError(
                    f"model.engine_kwargs[{name!r}] = {value!r} is for vLLM; a baseline takes "
                    f"{' and '.join(ENGINE_KWARGS)} alone. Leave it out of the baseline's model"
                )
        return self
