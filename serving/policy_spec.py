"""By what an autoscaler decides: strict data; `serving.deploy.autoscaling` has the policies
themselves."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

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
