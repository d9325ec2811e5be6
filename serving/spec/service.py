"""The service: one model behind an endpoint, and what every endpoint has in common."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from serving.spec.base import Strict
from serving.spec.limits import Limits
from serving.spec.model import ModelSpec, short_hash

_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?")


class EndpointSpec(Strict):
    """Fields of every endpoint, for one model or a pipeline of several."""

    name: str = Field(
        "llm",
        pattern=r"^[a-z0-9][a-z0-9-]{0,62}$",
        description="Name of the Serve application: lowercase letters, digits and hyphens.",
    )
    route_prefix: str = Field(
        "/", pattern=r"^/([\w-]+(/[\w-]+)*)?$", description="URL path of the endpoint."
    )
    host: str = Field(
        "127.0.0.1",
        description="Address that the endpoint and the replicas' HTTP servers listen on.",
    )
    port: int = Field(
        8000, ge=0, le=65535, description="Port of the endpoint; 0 chooses a free port."
    )
    max_connections_per_address: int = Field(
        2048,
        ge=16,
        le=65_536,
        description="Connections that one address may have open, except over loopback. A class "
        "behind one router is one address. Fixed, like host and port, while Ray Serve runs.",
    )
    limits: Limits = Field(
        default_factory=Limits, description="Limits of a single request, for every tenant."
    )
    cors_origins: tuple[str, ...] = Field(
        (),
        description="Origins of the web pages that may use the endpoint from a browser, such as "
        "https://app.example.org; '*' allows any, which still needs a key.",
    )
    start_timeout_s: float = Field(
        600, gt=0, description="Seconds within which a deployment must be ready; else it fails."
    )

    if TYPE_CHECKING:

        @property
        def models(self) -> tuple[ModelSpec, ...]:
            """The models that answer, in their fallback order."""

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    "must have origins as browsers send them, scheme://host[:port] in lower case "
                    "without a path, or '*'; for example https://app.example.org"
                )
        return origins

    @property
    def engines(self) -> tuple[ModelSpec, ...]:
        """All models that vLLM loads: those that answer, and a guard model."""
        return self.models

    @property
    def composed(self) -> bool:
        """Whether requests pass an ingress deployment, which scaling to zero also needs."""
        return True

    def auxiliary_deployments(self) -> dict[str, float]:
        """Return the CPUs of one replica of each deployment without an engine, by field name."""
        return {}

    @property
    def auxiliary_cpus(self) -> float:
        """CPUs of all replicas of the deployments without an engine."""
        return 0.0

    @property
    def uses_sessions(self) -> bool:
        """Whether the header ``x-session-id`` chooses the replica of a model."""
        return any(model.routing == "session" for model in self.models)

    def fingerprint(self) -> str:
        """Return a hash of the whole spec, which excludes tenants.

        Equal fingerprints need no new deployment.
        """
        return short_hash(self.model_dump(mode="json"))

    def engine_fingerprint(self, model: ModelSpec | None = None) -> str:
        """Return a hash of everything that a running replica cannot change.

        A different fingerprint needs new replicas.

        Args:
            model: One of the spec's models; default: the first.
        """
        engine = (model or self.models[0]).fixed_fields()
        max_tokens = self.limits.max_tokens
        return short_hash({"model": engine, "composed": self.composed, "max_tokens": max_tokens})

    def ingress_fingerprint(self) -> str:
        """Return a hash of everything that a running ingress cannot change."""
        return self.engine_fingerprint()


class ServiceSpec(EndpointSpec):
    """A service: one model behind one OpenAI-compatible endpoint."""

    model: ModelSpec = Field(default_factory=ModelSpec, description="The model to serve.")

    @property
    def models(self) -> tuple[ModelSpec, ...]:
        """The only model; of a disaggregated one, the decode side, which answers clients."""
        return (self.model.decode_side,)

    @property
    def engines(self) -> tuple[ModelSpec, ...]:
        """The model, and the prefill side of a disaggregated one."""
        prefill = self.model.prefill_side
        return self.models if prefill is None else (*self.models, prefill)

    @property
    def composed(self) -> bool:
        """Whether requests pass an ingress deployment, which scaling to zero needs."""
        return self.model.scaling.min_replicas == 0
