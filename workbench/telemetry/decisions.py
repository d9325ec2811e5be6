"""The decisions of the autoscaler, and what delayed them. Pure: samples in, decisions out.

Serve applies its policy about ten times a second: the policy requests a number of replicas
(`desired`), the delay of that direction must pass while the policy keeps requesting the same
direction, and the bounds limit the result. Samples come once a second, so times are accurate to
about a second.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from workbench.records import DecisionSample, DeploymentSample

REMEMBERED_S = 10.0
"""Seconds for which the last value of a missing metric counts."""

PATIENCE_S = 6.0
"""Seconds to wait for a policy's metrics, which come a second or two late, or more under load."""

REQUEST_COUNTS = ("total_requests", "queued_requests")


@dataclass(frozen=True)
class ScalingLimits:
    """The delays and bounds between a policy and the target, by Serve's own names."""

    min_replicas: int = 1
    max_replicas: int = 1
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    downscale_to_zero_delay_s: float | None = None

    @classmethod
    def from_config(cls, autoscaling_config: Mapping[str, Any] | None) -> ScalingLimits | None:
        """Return the limits in a deployment's `autoscaling_config`; None without autoscaling."""
        if not autoscaling_config:
            return None
        names = cls.__dataclass_fields__
        known = {name: autoscaling_config[name] for name in names if name in autoscaling_config}
        return cls(**known)

    def delay(self, from_target: int, up: bool) -> tuple[str, float]:
        """Return Serve's name of the delay of a change, and its seconds (0 from zero replicas)."""
        if up:
            return ("upscale_delay_s", self.upscale_delay_s if from_target else 0.0)
        if from_target == 1 and self.downscale_to_zero_delay_s is not None:
            return ("downscale_to_zero_delay_s", self.downscale_to_zero_delay_s)
        return ("downscale_delay_s", self.downscale_delay_s)

    def bound(self, to_target: int, desired: int | None, up: bool) -> str | None:
        """Return the name of the bound that limited `desired` to `to_target`, if any."""
        if desired is None:
            return None
        if up and to_target == self.max_replicas and desired > to_target:
            return "max_replicas"
        if not up and to_target == self.min_replicas and desired < to_target:
            return "min_replicas"
        return None


@dataclass(frozen=True)
class _Change:
    """A target that changed between two samples, and what was known when it was observed."""

    before: DeploymentSample
    now: DeploymentSample
    limits: tuple[ScalingLimits | None, ScalingLimits | None]
    wanted_s: float | None
    saw: dict[str, float]

    @property
    def from_target(self) -> int:
        assert self.before.target is not None
        return self.before.target

    @property
    def to_target(self) -> int:
        assert self.now.target is not None
        return self.now.target

    @property
    def up(self) -> bool:
        return self.to_target > self.from_target

    @property
    def requested_by_policy(self) -> bool:
        """Whether a policy changed it: from zero Serve wakes a deployment by its own rule."""
        return bool(self.from_target) and not self.forced_by_bound

    @property
    def forced_by_bound(self) -> bool:
        """Whether a bound was moved past the target, which follows it at once."""
        old, new = self.limits
        bounds = (new.min_replicas, new.max_replicas) if new is not None else ()
        return old not in (None, new) and self.to_target in bounds


@dataclass
class DecisionLog:
    """Finds the decisions in the samples of one deployment.

    A workbench policy exports what led to a change as metrics, which arrive later than the target
    that it changed. Such a change waits for them, at most `PATIENCE_S` seconds.
    """

    last: DeploymentSample | None = None
    limits: ScalingLimits | None = None
    _wanted_s: dict[bool, float | None] = field(default_factory=lambda: {True: None, False: None})
    _saw: dict[str, tuple[float, float]] = field(default_factory=dict)
    _known_last: dict[str, float] = field(default_factory=dict)
    _open: _Change | None = None

    def observe(
        self,
        sample: DeploymentSample,
        limits: ScalingLimits | None = None,
        saw: Mapping[str, float] | None = None,
        led: Mapping[str, float] | None = None,
    ) -> list[DecisionSample]:
        """Return the decisions that are complete with this sample; usually none.

        Args:
            sample: The next sample of the deployment.
            limits: Its limits.
            saw: Further metrics that the policy uses, by name.
            led: What the policy used when the target became `led["target"]`; None for a policy
                that does not report it.
        """
        change = self._change(sample, limits, saw or {})
        decisions = []
        if self._open is not None and (
            change is not None or self._is_complete(self._open, sample, led)
        ):
            decisions += self.close(led)
        if change is not None:
            self._open = change
            waits = led is not None and change.requested_by_policy
            if not waits or self._is_complete(change, sample, led):
                decisions += self.close(led)
        return decisions

    def close(self, led: Mapping[str, float] | None = None) -> list[DecisionSample]:
        """Return the change that still waits for its policy's metrics, as far as it is known."""
        change, self._open = self._open, None
        return [] if change is None else [_decision(change, led or {})]

    @staticmethod
    def _is_complete(
        change: _Change, sample: DeploymentSample, led: Mapping[str, float] | None
    ) -> bool:
        late = sample.time_s - change.now.time_s >= PATIENCE_S
        return late or (led or {}).get("target") == change.now.target

    def _change(
        self, sample: DeploymentSample, limits: ScalingLimits | None, saw: Mapping[str, float]
    ) -> _Change | None:
        before, old_limits, known_before = self.last, self.limits, self._known_last
        self.last, self.limits = sample, limits
        known = self._known_last = self._known(sample, saw)
        if before is None or before.target is None or sample.target is None:
            return None
        change = None
        if sample.target != before.target:
            up = sample.target > before.target
            # Once the target has changed, the metrics may already be those that follow.
            used = known_before if _requests(before, up) else known
            change = _Change(before, sample, (old_limits, limits), self._wanted_s[up], used)
            self._wanted_s = {True: None, False: None}
        self._note_request(sample)
        return change

    def _known(self, sample: DeploymentSample, saw: Mapping[str, float]) -> dict[str, float]:
        """Return the metrics that the policy used.

        Ray drops a gauge that is not set again in time. A metric that is missing now has its last
        value, if that is not long ago.
        """
        metrics = {name: getattr(sample, name) for name in REQUEST_COUNTS} | dict(saw)
        current = {
            name: (sample.time_s, value) for name, value in metrics.items() if value is not None
        }
        self._saw = {
            name: (at_s, value)
            for name, (at_s, value) in (self._saw | current).items()
            if sample.time_s - at_s <= REMEMBERED_S
        }
        return {name: value for name, (_, value) in self._saw.items()}

    def _note_request(self, sample: DeploymentSample) -> None:
        """Record since when the policy has been requesting more replicas, or fewer."""
        for up in (True, False):
            since_s = self._wanted_s[up]
            since_s = sample.time_s if since_s is None else since_s
            self._wanted_s[up] = since_s if _requests(sample, up) else None


def _decision(change: _Change, led: Mapping[str, float]) -> DecisionSample:
    # Once the target has changed, `desired` may already be what follows: the larger request counts.
    requested = [
        sample.desired for sample in (change.before, change.now) if sample.desired is not None
    ]
    saw = dict(change.saw)
    if change.requested_by_policy and led.get("target") == change.to_target and "desired" in led:
        metrics = {name: led[name] for name in led.keys() - {"target", "desired"}}
        saw = {name: saw[name] for name in REQUEST_COUNTS if name in saw} | metrics
        requested = [math.ceil(led["desired"] - 1e-9)]
    desired = (max(requested) if change.up else min(requested)) if requested else None
    held_by, wanted_s = _held_by(change, desired)
    return DecisionSample(
        time_s=change.now.time_s,
        deployment=change.now.deployment,
        from_target=change.from_target,
        to_target=change.to_target,
        desired=desired,
        total_requests=change.now.total_requests,
        held_by=held_by,
        wanted_s=wanted_s,
        saw=saw or None,
    )


def _requests(sample: DeploymentSample, up: bool) -> bool:
    """Return whether the policy requested more replicas than the target (`up`), or fewer."""
    if sample.desired is None or sample.target is None:
        return False
    return sample.desired > sample.target if up else sample.desired < sample.target


def _held_by(change: _Change, desired: int | None) -> tuple[str | None, float]:
    """Return what held the change back, by Serve's names, and since when the policy requested it.

    Serve makes no change before its delay, so the policy requested it for at least that long. The
    samples, which are late, may show less.
    """
    now_s, wanted_s, limits = change.now.time_s, change.wanted_s, change.limits[1]
    if limits is None:
        return None, now_s if wanted_s is None else wanted_s
    if change.forced_by_bound:
        at_most = change.to_target == limits.max_replicas
        return ("max_replicas" if at_most else "min_replicas"), now_s
    delay, delay_s = limits.delay(change.from_target, change.up)
    since_s = now_s - delay_s
    causes = [
        delay if delay_s > 0 else None,
        limits.bound(change.to_target, desired, change.up),
    ]
    held_by = ", ".join(cause for cause in causes if cause is not None) or None
    return held_by, since_s if wanted_s is None else min(since_s, wanted_s)


def decisions(
    samples: Iterable[DeploymentSample], limits: ScalingLimits | None = None
) -> list[DecisionSample]:
    """Return every change of target in `samples`, of one or several deployments, in time order."""
    logs: dict[str, DecisionLog] = {}
    changes: list[DecisionSample] = []
    for sample in samples:
        changes += logs.setdefault(sample.deployment, DecisionLog()).observe(sample, limits)
    return changes
