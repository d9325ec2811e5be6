"""What the autoscaler decided, why, and what held it back; pure: samples in, records out.

Serve applies its policy some ten times a second: the policy asks for a number of replicas
(`desired`), the delay of that direction must pass with the policy asking the same way all along,
and the bounds cut what is left. Samples come once a second, so times are right to about a second.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from workbench.records import DecisionSample, DeploymentSample

REMEMBERED_S = 10.0
PATIENCE_S = 6.0
"""A node's metrics come a second or two late, on a busy machine more."""

SERVES_OWN = ("total_requests", "queued_requests")


@dataclass(frozen=True)
class ScalingLimits:
    """What stands between a policy and the target: the names are Serve's own."""

    min_replicas: int = 1
    max_replicas: int = 1
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    downscale_to_zero_delay_s: float | None = None

    @classmethod
    def read(cls, autoscaling_config: Mapping[str, Any] | None) -> ScalingLimits | None:
        """From a deployment's `autoscaling_config`; None for one that does not scale."""
        if not autoscaling_config:
            return None
        names = cls.__dataclass_fields__
        known = {name: autoscaling_config[name] for name in names if name in autoscaling_config}
        return cls(**known)

    def delay(self, from_target: int, up: bool) -> tuple[str, float]:
        """The delay of a change, and Serve's name for it. From zero there is none."""
        if up:
            return ("upscale_delay_s", self.upscale_delay_s if from_target else 0.0)
        if from_target == 1 and self.downscale_to_zero_delay_s is not None:
            return ("downscale_to_zero_delay_s", self.downscale_to_zero_delay_s)
        return ("downscale_delay_s", self.downscale_delay_s)

    def bound(self, to_target: int, desired: int | None, up: bool) -> str | None:
        """The bound that cut `desired` down to `to_target`, if one did."""
        if desired is None:
            return None
        if up and to_target == self.max_replicas and desired > to_target:
            return "max_replicas"
        if not up and to_target == self.min_replicas and desired < to_target:
            return "min_replicas"
        return None


@dataclass(frozen=True)
class _Change:
    """A target that moved between two samples, and what was known of it when it was seen."""

    before: DeploymentSample
    now: DeploymentSample
    limits: tuple[ScalingLimits | None, ScalingLimits | None]
    wanting_s: float | None
    saw: dict[str, float]

    @property
    def up(self) -> bool:
        return (self.now.target or 0) > (self.before.target or 0)

    @property
    def asked_for(self) -> bool:
        """Whether a policy moved it: from zero Serve wakes by its own rule."""
        return bool(self.before.target) and not self.by_a_bound

    @property
    def by_a_bound(self) -> bool:
        """A bound that was moved over the target, which follows it at once."""
        old, new = self.limits
        bounds = (new.min_replicas, new.max_replicas) if new is not None else ()
        return old not in (None, new) and self.now.target in bounds


@dataclass
class DecisionLog:
    """One deployment's samples, one after the other, and a record for each change of target.

    A policy that says itself what led to a change does so through metrics, which come later than
    the target that it moved: such a change waits for them, ``PATIENCE_S`` at most.
    """

    last: DeploymentSample | None = None
    limits: ScalingLimits | None = None
    _wanting: dict[bool, float | None] = field(default_factory=lambda: {True: None, False: None})
    _saw: dict[str, tuple[float, float]] = field(default_factory=dict)
    _known_last: dict[str, float] = field(default_factory=dict)
    _open: _Change | None = None

    def see(
        self,
        sample: DeploymentSample,
        limits: ScalingLimits | None = None,
        saw: Mapping[str, float] | None = None,
        led: Mapping[str, float] | None = None,
    ) -> list[DecisionSample]:
        """The decisions that are known with this sample, none for most.

        `saw` has further figures that the policy goes by, by name; `led` what it went by when the
        target became ``led["target"]``, for a policy that tells, and None for one that does not.
        """
        change = self._change(sample, limits, saw or {})
        made = []
        if self._open is not None and (change is not None or self._told(self._open, sample, led)):
            made += self.close(led)
        if change is not None:
            self._open = change
            if led is None or not change.asked_for or self._told(change, sample, led):
                made += self.close(led)
        return made

    def close(self, led: Mapping[str, float] | None = None) -> list[DecisionSample]:
        """The change that still waits for what led to it, with what is known."""
        change, self._open = self._open, None
        return [] if change is None else [_record(change, led or {})]

    @staticmethod
    def _told(change: _Change, sample: DeploymentSample, led: Mapping[str, float] | None) -> bool:
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
            # Once the target has moved, the figures may already be those that follow.
            went_by = known_before if _asks(before, up) else known
            limits_then = (old_limits, limits)
            change = _Change(before, sample, limits_then, self._wanting[up], went_by)
            self._wanting = {True: None, False: None}
        self._note(sample)
        return change

    def _known(self, sample: DeploymentSample, saw: Mapping[str, float]) -> dict[str, float]:
        """What the policy went by. Ray drops a gauge that was not set anew in time, so a figure
        that is missing now is the one told last, if not long ago."""
        figures = {name: getattr(sample, name) for name in SERVES_OWN} | dict(saw)
        told = {name: (sample.time_s, v) for name, v in figures.items() if v is not None}
        self._saw = {
            name: (at, value)
            for name, (at, value) in (self._saw | told).items()
            if sample.time_s - at <= REMEMBERED_S
        }
        return {name: value for name, (_, value) in self._saw.items()}

    def _note(self, sample: DeploymentSample) -> None:
        """Since when the policy has been asking for more, and for less."""
        for up in (True, False):
            since = sample.time_s if self._wanting[up] is None else self._wanting[up]
            self._wanting[up] = since if _asks(sample, up) else None


def _record(change: _Change, led: Mapping[str, float]) -> DecisionSample:
    before, now, up = change.before, change.now, change.up
    assert before.target is not None
    assert now.target is not None
    # Once the target has moved, `desired` may already be what follows: the larger ask counts.
    asked = [one.desired for one in (before, now) if one.desired is not None]
    saw = dict(change.saw)
    if change.asked_for and led.get("target") == now.target and "desired" in led:
        figures = {name: led[name] for name in led.keys() - {"target", "desired"}}
        saw = {name: saw[name] for name in SERVES_OWN if name in saw} | figures
        asked = [math.ceil(led["desired"] - 1e-9)]
    desired = (max(asked) if up else min(asked)) if asked else None
    held_by, wanted_s = _held(change, desired)
    return DecisionSample(
        time_s=now.time_s,
        deployment=now.deployment,
        from_target=before.target,
        to_target=now.target,
        desired=desired,
        total_requests=now.total_requests,
        held_by=held_by,
        wanted_s=wanted_s,
        saw=saw or None,
    )


def _asks(sample: DeploymentSample, up: bool) -> bool:
    """Whether the policy asked for more replicas than the target (`up`), or for less."""
    if sample.desired is None or sample.target is None:
        return False
    return sample.desired > sample.target if up else sample.desired < sample.target


def _held(change: _Change, desired: int | None) -> tuple[str | None, float]:
    """What held the change, by Serve's names, and since when the policy wanted it.

    Serve lets no change pass before its delay, so the policy wanted it at least so long: the
    samples, which are late, may show less.
    """
    before, now, wanting_s, new = change.before, change.now, change.wanting_s, change.limits[1]
    assert before.target is not None
    assert now.target is not None
    if new is None:
        return None, now.time_s if wanting_s is None else wanting_s
    if change.by_a_bound:
        return ("max_replicas" if now.target == new.max_replicas else "min_replicas"), now.time_s
    name, delay_s = new.delay(before.target, change.up)
    since = now.time_s - delay_s
    held = [name if delay_s > 0 else None, new.bound(now.target, desired, change.up)]
    told = ", ".join(one for one in held if one is not None) or None
    return told, since if wanting_s is None else min(since, wanting_s)


def decisions(
    samples: Iterable[DeploymentSample], limits: ScalingLimits | None = None
) -> list[DecisionSample]:
    """Every change of target in `samples`, which may be of several deployments, in time order."""
    logs: dict[str, DecisionLog] = {}
    seen = (logs.setdefault(one.deployment, DecisionLog()).see(one, limits) for one in samples)
    return [one for made in seen for one in made]
