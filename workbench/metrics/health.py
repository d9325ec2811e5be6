"""Whether the client kept up with its own load, or shaped the figures itself."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field


class Frozen(BaseModel):
    """Unknown keys fail and values do not change."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class HealthBounds(Frozen):
    """Past one of these, the client itself shaped the figures."""

    send_lag_p99_ms: float = Field(25, gt=0, description="How late requests were sent.")
    loop_lag_p99_ms: float = Field(25, gt=0, description="How late the event loop ran.")
    cpu_share: float = Field(0.9, gt=0, le=1, description="CPU share of a load worker.")


class ClientHealth(Frozen):
    """Whether the client kept up. `client_limited` is None where nothing was measured."""

    send_lag_p99_ms: float | None = Field(None, description="p99 of sent - scheduled.")
    loop_lag_p99_ms: float | None = Field(None, description="p99 lag of the event loops.")
    cpu_share: float | None = Field(None, description="Highest CPU share of a load worker.")
    client_limited: bool | None = Field(None, description="True if one is past its bound.")
    reasons: tuple[str, ...] = Field((), description="What is past its bound.")
    bounds: HealthBounds = Field(HealthBounds(), description="What it was judged by.")

    @classmethod
    def judge(cls, bounds: HealthBounds | None = None, **measured: float | None) -> Self:
        """The verdict on the measured `send_lag_p99_ms`, `loop_lag_p99_ms`, `cpu_share`."""
        bounds = bounds or HealthBounds()
        limits = bounds.model_dump()
        known = {name: value for name, value in measured.items() if value is not None}
        reasons = tuple(
            f"{name} {value:.3g} is past {limits[name]:g}"
            for name, value in known.items()
            if value > limits[name]
        )
        limited = bool(reasons) if known else None
        return cls(**measured, client_limited=limited, reasons=reasons, bounds=bounds)

    @property
    def verdict(self) -> Literal["ok", "client limited", "not measured"]:
        if self.client_limited is None:
            return "not measured"
        return "client limited" if self.client_limited else "ok"
