"""Whether the client kept up with its own load, or distorted what it measured."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Literal, Self

from pydantic import Field

from serving.spec.base import Frozen


class HealthBounds(Frozen):
    """The bounds above which the client distorts what it measures."""

    send_lag_p99_ms: float = Field(25, gt=0, description="p99 send lag, in ms.")
    loop_lag_p99_ms: float = Field(25, gt=0, description="p99 event-loop lag, in ms.")
    cpu_share: float = Field(0.9, gt=0, le=1, description="CPU share of a load worker, 0 to 1.")


class ClientHealth(Frozen):
    """Whether the client kept up. `client_limited` is None if nothing was measured."""

    send_lag_p99_ms: float | None = Field(
        None, description="p99 of the send time minus the scheduled time, in ms."
    )
    loop_lag_p99_ms: float | None = Field(None, description="p99 lag of the event loops, in ms.")
    cpu_share: float | None = Field(None, description="Highest CPU share of a load worker, 0 to 1.")
    client_limited: bool | None = Field(None, description="True if a value exceeds its bound.")
    reasons: tuple[str, ...] = Field((), description="The values that exceed their bounds.")
    bounds: HealthBounds = Field(HealthBounds(), description="The bounds that were applied.")

    @classmethod
    def judge(cls, bounds: HealthBounds | None = None, **measured: float | None) -> Self:
        """Apply `bounds` to the measured `send_lag_p99_ms`, `loop_lag_p99_ms` and `cpu_share`."""
        bounds = bounds or HealthBounds()
        limits = bounds.model_dump()
        known = {name: value for name, value in measured.items() if value is not None}
        reasons = tuple(
            f"{name} {value:.3g} exceeds {limits[name]:g}"
            for name, value in known.items()
            if value > limits[name]
        )
        limited = bool(reasons) if known else None
        return cls(**measured, client_limited=limited, reasons=reasons, bounds=bounds)

    @classmethod
    def combine(cls, healths: Iterable[ClientHealth]) -> Self:
        """Combine the health of several runs: client limited if one of them is.

        Each value is the highest measured one. Reasons are not repeated.
        """
        known = list(healths)
        if not known:
            return cls()
        measured = [health for health in known if health.client_limited is not None]
        limited = [health for health in measured if health.client_limited]
        return cls(
            **{name: _highest(known, name) for name in HealthBounds.model_fields},
            client_limited=bool(limited) if measured else None,
            reasons=tuple(dict.fromkeys(reason for health in limited for reason in health.reasons)),
            bounds=known[0].bounds,
        )

    def labelled(self, label: str) -> Self:
        """Return a copy whose reasons, joined into one, start with `label`."""
        reasons = (f"{label}: {', '.join(self.reasons)}",) if self.reasons else ()
        return self.model_copy(update={"reasons": reasons})

    @property
    def verdict(self) -> Literal["ok", "client limited", "not measured"]:
        """The verdict in words."""
        if self.client_limited is None:
            return "not measured"
        return "client limited" if self.client_limited else "ok"


def _highest(healths: Iterable[ClientHealth], name: str) -> float | None:
    values = (getattr(health, name) for health in healths)
    return max((value for value in values if value is not None), default=None)


class LoopWatch:
    """Measure this thread's event loop while the context is open (`async with`).

    `loop_lag_p99_ms` is how late the loop ran its timers, `cpu_share` the share of one core that
    the loop's thread used. Both are None until the context closes. `loop_lag_p99_ms` stays None
    if no timer ran.
    """

    def __init__(self, interval_s: float = 0.02) -> None:
        self._interval = interval_s
        self._lags: list[float] = []
        self.loop_lag_p99_ms: float | None = None
        self.cpu_share: float | None = None

    async def __aenter__(self) -> LoopWatch:
        self._started = (time.perf_counter(), time.thread_time())
        self._sampler = asyncio.create_task(self._sample())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: object, trace: TracebackType | None
    ) -> None:
        self._sampler.cancel()
        wall, cpu = time.perf_counter() - self._started[0], time.thread_time() - self._started[1]
        self.cpu_share = cpu / wall if wall > 0 else None
        if self._lags:
            self.loop_lag_p99_ms = sorted(self._lags)[int(0.99 * (len(self._lags) - 1))] * 1e3

    async def _sample(self) -> None:
        while True:
            due = time.perf_counter() + self._interval
            await asyncio.sleep(self._interval)
            self._lags.append(max(0.0, time.perf_counter() - due))
