"""How a model scales, as data."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from serving.spec.base import Strict


class Requests(Strict):
    """Ray Serve's own policy: requests in progress a replica against target_ongoing_requests."""

    kind: Literal["requests"] = Field("requests", description="Ray Serve's request count.")

    def serve_policy(self) -> dict[str, Any] | None:
        """Serve's ``policy`` entry; None leaves Serve's default."""
        return None


class EnginePressure(Strict):
    """What the engine feels: how full its KV cache is, and how many requests wait for it."""

    kind: Literal["engine_pressure"] = Field("engine_pressure", description="KV cache and queue.")
    kv_cache_usage: float = Field(
        0.7, gt=0, le=1, description="Share of the KV cache in use that the autoscaler aims at."
    )
    waiting_requests: float = Field(
        4, gt=0, description="Requests waiting for a replica that the autoscaler aims at."
    )

    def serve_policy(self) -> dict[str, Any]:
        """Serve's ``policy`` entry."""
        return _entry("EnginePressurePolicy", self)


class TTFTTarget(Strict):
    """What the user feels: the time to the first token, by the replica's own clock."""

    kind: Literal["ttft_target"] = Field("ttft_target", description="Time to first token.")
    ttft_ms: float = Field(gt=0, description="TTFT in ms that the autoscaler keeps within.")
    percentile: Literal[50, 90, 99] = Field(90, description="Of the recent TTFTs of a replica.")
    slack: float = Field(
        0.5, gt=0, lt=1, description="Share of ttft_ms under which one replica may go."
    )

    def serve_policy(self) -> dict[str, Any]:
        """Serve's ``policy`` entry."""
        return _entry("TTFTPolicy", self)


def _entry(name: str, spec: Strict) -> dict[str, Any]:
    # By its path: Serve pickles the module by value, so that a controller need not have it.
    return {
        "policy_function": f"serving.deploy.autoscaling.{name}",
        "policy_kwargs": spec.model_dump(exclude={"kind"}),
    }


PolicySpec: TypeAlias = Annotated[
    Requests | EnginePressure | TTFTTarget, Field(discriminator="kind")
]


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
    policy: PolicySpec = Field(
        default_factory=Requests, description="By what the autoscaler decides."
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
