"""Autoscaling policies beyond Ray Serve's request count, on Ray Serve's own policy interface.

Serve calls a policy some ten times a second in its controller, with an ``AutoscalingContext``, and
applies delays, factors and bounds to what it returns; a deployment that sleeps is woken by Serve
itself. The figures are those of ``record_autoscaling_stats`` (``serving.engine.stats``), averaged
by Serve over ``look_back_period_s``; those of a new replica are missing at first.

Serve pickles this module by value into the controller, which may lack our packages: it imports
nothing of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

DESIRED, SAW = "workbench_policy_desired", "workbench_policy_saw"
LED = "workbench_policy_led"
GROWTH = 2.0
"""A latency says that replicas are too few, not by how many: at most twice as many at a time."""

Figures = Mapping[str, float]


def pressure_desired(
    replicas: int, saw: Figures, *, kv_cache_usage: float, waiting_requests: float
) -> float:
    """Replicas that bring KV-cache use and the queue, means a replica, to what is aimed at.

    Both are shared out over the replicas, so the want is proportional to either: the larger counts.
    """
    pressures = (
        saw.get("kv_cache_usage", 0.0) / kv_cache_usage,
        saw.get("waiting_requests", 0.0) / waiting_requests,
    )
    return replicas * max(pressures)


def ttft_desired(replicas: int, saw: Figures, *, ttft_ms: float, slack: float) -> float:
    """Replicas by the time to first token: more in proportion above `ttft_ms`, one less below
    `slack` of it while nothing waits, none for nothing to do.
    """
    if not saw.get("engine_running_requests", 0.0) and not saw.get("waiting_requests", 0.0):
        return 0.0
    share = saw.get("ttft_ms", 0.0) / ttft_ms
    if share > 1:
        return replicas * min(share, GROWTH)
    idle = share < slack and saw.get("waiting_requests", 0.0) < 1
    return max(1, replicas - 1) if idle else replicas


def mean_figures(context: AutoscalingContext) -> dict[str, float]:
    """What the running replicas report, each figure as its mean over those that report it.

    The queue also has what waits in Serve's handles, shared out over the replicas.
    """
    reported = context.aggregated_metrics or {}
    running = {str(one) for one in context.running_replicas}
    found: dict[str, float] = {}
    for name, by_replica in reported.items():
        known = [value for replica, value in by_replica.items() if str(replica) in running]
        if known:
            found[name] = sum(known) / len(known)
    if "waiting_requests" in found:
        handles = float(context.total_queued_requests or 0.0)
        found["waiting_requests"] += handles / max(1, context.current_num_replicas)
    return found


class _Policy:
    """What both share: holding on while nothing is known, and telling what was seen and wanted."""

    names: tuple[str, ...] = ()
    _target: int | None = None
    _told: tuple[float, Figures] = (0.0, {})
    _led: Figures = MappingProxyType({})

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        saw = self.saw(context)
        if context.current_num_replicas == 0 or "waiting_requests" not in saw:
            desired = float(context.target_num_replicas)
        else:
            desired = self.desired(context.current_num_replicas, saw)
        led = self.led_to(context.target_num_replicas)
        self._told = desired, saw
        self._tell(context, led)
        return desired, {}

    def led_to(self, target: int) -> Figures:
        """`target`, and what was wanted and seen when Serve last moved it, if this policy asked.

        It lasts until the next change: the gauges are read seconds later on a busy machine. Serve
        wakes a deployment by its own rule, and a bound that is moved takes the target along.
        """
        if target != self._target:
            before, (desired, saw) = self._target, self._told
            asked = before is not None and (target - before) * (desired - before) > 0
            self._led = {"target": target, **({"desired": desired, **saw} if asked else {})}
            self._target = target
        return self._led

    def saw(self, context: AutoscalingContext) -> dict[str, float]:
        return mean_figures(context)

    def desired(self, replicas: int, saw: Figures) -> float:
        raise NotImplementedError

    def _tell(self, context: AutoscalingContext, led: Figures) -> None:
        """As gauges of the controller: Serve's own shows a policy's result after the delays."""
        from ray.util.metrics import Gauge

        tags = {"deployment": context.deployment_name, "application": context.app_name or ""}
        keys = ("deployment", "application")
        if not hasattr(self, "_gauges"):
            told = "What the autoscaling policy {}."
            self._gauges = (
                Gauge(DESIRED, told.format("asks for, before delays and bounds"), keys),
                Gauge(SAW, told.format("goes by"), (*keys, "figure")),
                Gauge(LED, told.format("went by when the target changed"), (*keys, "figure")),
            )
        desired, saw = self._told
        self._gauges[0].set(desired, tags)
        for name in self.names:
            if name in saw:
                self._gauges[1].set(saw[name], tags | {"figure": name})
        for name in ("target", "desired", *self.names):
            # Not a number takes back what an earlier change left there.
            self._gauges[2].set(led.get(name, math.nan), tags | {"figure": name})


class EnginePressurePolicy(_Policy):
    """KV-cache use and waiting requests, as ``serving.spec.scaling.EnginePressure`` describes."""

    names = ("kv_cache_usage", "waiting_requests")

    def __init__(self, kv_cache_usage: float, waiting_requests: float) -> None:
        self._aims = {"kv_cache_usage": kv_cache_usage, "waiting_requests": waiting_requests}

    def desired(self, replicas: int, saw: Figures) -> float:
        return pressure_desired(replicas, saw, **self._aims)


class TTFTPolicy(_Policy):
    """The time to first token, as ``serving.spec.scaling.TTFTTarget`` describes."""

    names = ("ttft_ms", "engine_running_requests", "waiting_requests")

    def __init__(self, ttft_ms: float, percentile: int, slack: float) -> None:
        self._ttft_ms, self._slack, self._key = ttft_ms, slack, f"ttft_p{percentile}_ms"

    def desired(self, replicas: int, saw: Figures) -> float:
        return ttft_desired(replicas, saw, ttft_ms=self._ttft_ms, slack=self._slack)

    def saw(self, context: AutoscalingContext) -> dict[str, float]:
        figures = mean_figures(context)
        return figures | ({"ttft_ms": figures[self._key]} if self._key in figures else {})
