"""The scaling of a model: replica bounds, delays and the autoscaling policy."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from serving.spec.base import Strict


class Requests(Strict):
    """Ray Serve's own policy: ongoing requests per replica against target_ongoing_requests."""

    kind: Literal["requests"] = Field("requests", description="The kind of policy.")

    def serve_policy(self) -> dict[str, Any] | None:
        """Return Serve's ``policy`` entry: None, which keeps Serve's default policy."""
        return None


class EnginePressure(Strict):
    """Scale on the state of the engine: KV cache usage and waiting requests."""

    kind: Literal["engine_pressure"] = Field("engine_pressure", description="The kind of policy.")
    kv_cache_usage: float = Field(
        0.7, gt=0, le=1, description="Target share of the KV cache in use, above 0 and up to 1."
    )
    waiting_requests: float = Field(
        4, gt=0, description="Target number of waiting requests per replica."
    )

    def serve_policy(self) -> dict[str, Any]:
        """Return Serve's ``policy`` entry."""
        return _policy_entry("EnginePressurePolicy", self)


class TTFTTarget(Strict):
    """Scale on the time to first token that replicas measure."""

    kind: Literal["ttft_target"] = Field("ttft_target", description="The kind of policy.")
    ttft_ms: float = Field(gt=0, description="Target time to first token, in milliseconds.")
    percentile: Literal[50, 90, 99] = Field(
        90, description="Percentile of a replica's recent TTFTs that is compared with ttft_ms."
    )
    slack: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="A replica may stop while the TTFT is below this share of ttft_ms, between 0 "
        "and 1.",
    )

    def serve_policy(self) -> dict[str, Any]:
        """Return Serve's ``policy`` entry."""
        return _policy_entry("TTFTPolicy", self)


def _policy_entry(name: str, policy: Strict) -> dict[str, Any]:
    # Named by import path: Serve pickles the module by value, so the controller need not have it.
    return {
        "policy_function": f"serving.deploy.autoscaling.{name}",
        "policy_kwargs": policy.model_dump(exclude={"kind"}),
    }


PolicySpec: TypeAlias = Annotated[
    Requests | EnginePressure | TTFTTarget, Field(discriminator="kind")
]


class ScalingSpec(Strict):
    """Number of replicas and when it changes, in the terms of Serve's ``AutoscalingConfig``."""

    min_replicas: int = Field(
        1, ge=0, description="Minimum number of replicas; 0 lets the model scale to zero."
    )
    max_replicas: int = Field(
        1, ge=1, description="Maximum number of replicas that the autoscaler may start."
    )
    initial_replicas: int | None = Field(
        None, ge=0, description="Replicas at the first deployment; default: min_replicas."
    )
    target_ongoing_requests: float = Field(
        8, gt=0, description="Target average of ongoing requests per replica."
    )
    max_ongoing_requests: int = Field(
        64,
        ge=1,
        le=4096,
        description="Maximum number of requests that a replica serves at once, up to 4096.",
    )
    max_queued_requests: int = Field(
        128,
        ge=0,
        le=8192,
        description="Maximum number of requests waiting for a replica, up to 8192; more are shed "
        "with HTTP 429.",
    )
    upscale_delay_s: float = Field(
        10, ge=0, description="Seconds that demand must last before replicas are added."
    )
    downscale_delay_s: float = Field(
        60, ge=0, description="Seconds that demand must stay low before replicas are removed."
    )
    downscale_to_zero_delay_s: float | None = Field(
        None,
        ge=0,
        description="Seconds without requests before the last replica is removed, where "
        "min_replicas is 0; default: downscale_delay_s.",
    )
    metrics_interval_s: float = Field(
        2, gt=0, description="Seconds between a replica's reports of its request counts."
    )
    look_back_period_s: float = Field(
        10, gt=0, description="Seconds over which request counts are averaged."
    )
    policy: PolicySpec = Field(default_factory=Requests, description="The autoscaling policy.")
    retry_after_s: int = Field(
        1, ge=1, description="Seconds in the Retry-After header of a shed request."
    )

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas must be at least min_replicas = {self.min_replicas}, "
                f"got {self.max_replicas}; raise max_replicas or lower min_replicas"
            )
        first = self.initial_replicas
        if first is not None and not self.min_replicas <= first <= self.max_replicas:
            raise ValueError(
                f"initial_replicas must be between min_replicas = {self.min_replicas} and "
                f"max_replicas = {self.max_replicas}, got {first}; leave it out to start with "
                "min_replicas"
            )
        if self.target_ongoing_requests > self.max_ongoing_requests:
            raise ValueError(
                f"target_ongoing_requests must be at most max_ongoing_requests = "
                f"{self.max_ongoing_requests}, got {self.target_ongoing_requests:g}; lower it or "
                "raise max_ongoing_requests"
            )
        return self
