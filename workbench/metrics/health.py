"""Whether the client kept up with its own load, or shaped the figures itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Literal, Self

from pydantic import Field

from serving.spec.base import Frozen


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

    @classmethod
    def combine(cls, healths: Iterable[Self]) -> Self | None:
        """Return the worst of several healths, or None if there are none."""
        known = list(healths)
        if not known:
            return None
        limited = [health for health in known if health.client_limited]
        measured = any(health.client_limited is not None for health in known)
        figures = {
            name: max((v for h in known if (v := getattr(h, name)) is not None), default=None)
            for name in HealthBounds.model_fields
        }
        return cls(
            **figures,
            client_limited=bool(limited) if measured else None,
            reasons=tuple(dict.fromkeys(r for health in limited for r in health.reasons)),
            bounds=known[0].bounds,
        )

    @property
    def verdict(self) -> Literal["ok", "client limited", "not measured"]:
        if self.client_limited is None:
            return "not measured"
        return "client limited" if self.client_limited else "ok"


class LoopWatch:
    """While open (`async with`), watches this thread's event loop: what a client cannot hide.

    `loop_lag_p99_ms` says how late the loop ran its timers, `cpu_share` which part of one core
    the loop's thread used. Both are None until it has closed, and stay so if it saw too little.
    """

    def __init__(self, interval_s: float = 0.02) -> None:
        self._interval = interval_s
        self._lags: list[float] = []
        self.loop_lag_p99_ms: float | None = None
        self.cpu_share: float | None = None

    async def __aenter__(self) -> LoopWatch:
        self._began = (time.perf_counter(), time.thread_time())
        self._sampler = asyncio.create_task(self._sample())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: object, trace: TracebackType | None
    ) -> None:
        self._sampler.cancel()
        wall, cpu = time.perf_counter() - self._began[0], time.thread_time() - self._began[1]
        self.cpu_share = cpu / wall if wall > 0 else None
        if self._lags:
            self.loop_lag_p99_ms = sorted(self._lags)[int(0.99 * (len(self._lags) - 1))] * 1e3

    async def _sample(self) -> None:
        while True:
            due = time.perf_counter() + self._interval
            await asyncio.sleep(self._interval)
            self._lags.append(max(0.0, time.perf_counter() - due))
