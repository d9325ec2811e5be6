"""Autoscaling policies beyond Ray Serve's request count, on Ray Serve's own policy interface.

Serve calls a policy about ten times a second in its controller, with an ``AutoscalingContext``, and
applies delays, factors and bounds to the result. Serve itself wakes a deployment that has scaled to
zero. The figures come from ``record_autoscaling_stats`` (``serving.engine.stats``), averaged by
Serve over ``look_back_period_s``. A new replica has no statistics at first.

Serve pickles this module by value for the controller, which may be unable to import this project:
the module imports nothing of it, and any use of private API would be here. It uses none:
``AutoscalingContext`` and ``ray.util.metrics.Gauge`` are public.
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
MAX_GROWTH = 2.0
"""A latency shows that replicas are too few, not by how many: grow by this factor at most."""

Figures = Mapping[str, float]


def pressure_desired(
    replicas: int, figures: Figures, *, kv_cache_usage: float, waiting_requests: float
) -> float:
    """Return the replicas that bring KV-cache usage and the queue to their targets.

    Both are means per replica, so the number is proportional to each; the larger one counts.

    Args:
        replicas: The replicas now.
        figures: What the replicas report (:func:`mean_figures`).
        kv_cache_usage: The target share of the KV cache in use.
        waiting_requests: The target number of waiting requests per replica.
    """
    pressures = (
        figures.get("kv_cache_usage", 0.0) / kv_cache_usage,
        figures.get("waiting_requests", 0.0) / waiting_requests,
    )
    return replicas * max(pressures)


def ttft_desired(replicas: int, figures: Figures, *, ttft_ms: float, slack: float) -> float:
    """Return the replicas that keep the time to first token within ``ttft_ms``.

    Above ``ttft_ms`` the number grows in proportion. Below ``slack`` times ``ttft_ms`` it shrinks
    by one, if nothing waits. It is 0 if there are no requests.
    """
    waiting = figures.get("waiting_requests", 0.0)
    if not figures.get("engine_running_requests", 0.0) and not waiting:
        return 0.0
    share = figures.get("ttft_ms", 0.0) / ttft_ms
    if share > 1:
        return replicas * min(share, MAX_GROWTH)
    has_slack = share < slack and waiting < 1
    return max(1, replicas - 1) if has_slack else replicas


def mean_figures(context: AutoscalingContext) -> dict[str, float]:
    """Return each figure as its mean over the running replicas that report it.

    ``waiting_requests`` includes the requests in Serve's handles, divided by the replicas.
    """
    reported = context.aggregated_metrics or {}
    running = {str(replica) for replica in context.running_replicas}
    figures: dict[str, float] = {}
    for name, by_replica in reported.items():
        values = [value for replica, value in by_replica.items() if str(replica) in running]
        if values:
            figures[name] = sum(values) / len(values)
    if "waiting_requests" in figures:
        in_handles = float(context.total_queued_requests or 0.0)
        figures["waiting_requests"] += in_handles / max(1, context.current_num_replicas)
    return figures


class _Policy:
    """Keeps the target while no figures are known, and exports what it saw and asked for."""

    figure_names: tuple[str, ...] = ()
    _target: int | None = None
    _last: tuple[float, Figures] = (0.0, {})
    _cause: Figures = MappingProxyType({})

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        figures = self.figures(context)
        if context.current_num_replicas == 0 or "waiting_requests" not in figures:
            desired = float(context.target_num_replicas)
        else:
            desired = self.desired(context.current_num_replicas, figures)
        cause = self.cause_of(context.target_num_replicas)
        self._last = desired, figures
        self._export(context, cause)
        return desired, {}

    def cause_of(self, target: int) -> Figures:
        """Return the target, and what led to its last change if this policy asked for it.

        What led to it is the desired number and the figures of the call before. They are kept
        until the next change, because the gauges are read seconds later on a busy machine. A
        deployment that Serve woke, or whose bounds moved the target, has no such cause.
        """
        if target != self._target:
            before, (desired, figures) = self._target, self._last
            asked = before is not None and (target - before) * (desired - before) > 0
            self._cause = {"target": target, **({"desired": desired, **figures} if asked else {})}
            self._target = target
        return self._cause

    def figures(self, context: AutoscalingContext) -> dict[str, float]:
        return mean_figures(context)

    def desired(self, replicas: int, figures: Figures) -> float:
        raise NotImplementedError

    def _export(self, context: AutoscalingContext, cause: Figures) -> None:
        """Set gauges of the controller; Serve's own shows a policy's result after the delays."""
        from ray.util.metrics import Gauge

        tags = {"deployment": context.deployment_name, "application": context.app_name or ""}
        keys = ("deployment", "application")
        if not hasattr(self, "_gauges"):
            self._gauges = (
                Gauge(DESIRED, "Replicas the policy asks for, before delays and bounds.", keys),
                Gauge(SAW, "Figures that the policy uses.", (*keys, "figure")),
                Gauge(LED, "Figures that led to the last change.", (*keys, "figure")),
            )
        desired, figures = self._last
        self._gauges[0].set(desired, tags)
        for name in self.figure_names:
            if name in figures:
                self._gauges[1].set(figures[name], tags | {"figure": name})
        for name in ("target", "desired", *self.figure_names):
            # NaN replaces what an earlier change left there.
            self._gauges[2].set(cause.get(name, math.nan), tags | {"figure": name})


class EnginePressurePolicy(_Policy):
    """Follows KV-cache usage and waiting requests (``serving.spec.scaling.EnginePressure``)."""

    figure_names = ("kv_cache_usage", "waiting_requests")

    def __init__(self, kv_cache_usage: float, waiting_requests: float) -> None:
        self._targets = {"kv_cache_usage": kv_cache_usage, "waiting_requests": waiting_requests}

    def desired(self, replicas: int, figures: Figures) -> float:
        """Return the desired number of replicas, before rounding and bounds."""
        return pressure_desired(replicas, figures, **self._targets)


class TTFTPolicy(_Policy):
    """Follows the time to first token (``serving.spec.scaling.TTFTTarget``)."""

    figure_names = ("ttft_ms", "engine_running_requests", "waiting_requests")

    def __init__(self, ttft_ms: float, percentile: int, slack: float) -> None:
        self._ttft_ms, self._slack, self._key = ttft_ms, slack, f"ttft_p{percentile}_ms"

    def desired(self, replicas: int, figures: Figures) -> float:
        """Return the desired number of replicas, before rounding and bounds."""
        return ttft_desired(replicas, figures, ttft_ms=self._ttft_ms, slack=self._slack)

    def figures(self, context: AutoscalingContext) -> dict[str, float]:
        """Return the mean figures, with the configured percentile as ``ttft_ms``."""
        figures = mean_figures(context)
        return figures | ({"ttft_ms": figures[self._key]} if self._key in figures else {})
