"""Replica-seconds from samples: how long replicas were held, and in which state. Pure.

The rule: what a sample tells holds until the next sample of the same deployment. So a state counts
from the moment it was seen to the moment another was, and a figure is right to one interval (a
second) a change, up or down alike. A running replica is busy while its engine has a request running
or waiting, and idle while it has none.

A gap is not a zero. Where the next sample comes more than `MAX_GAP_S` later, or an engine tells
nothing of itself, the replicas last seen are held all the same, since they cost all the same, but
in the state `unknown`. Before the first sample of a deployment and after the last, nothing counts.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Self

from workbench.records import DeploymentSample, GpuSample, ReplicaSample, Sample

MAX_GAP_S = 5.0
"""Samples come once a second; what is further apart is a gap."""
STATES = ("busy", "idle", "starting", "stopping", "unknown")
JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class ReplicaSeconds:
    """Seconds that replicas of one deployment were held, by state."""

    busy: float = 0.0
    idle: float = 0.0
    starting: float = 0.0
    stopping: float = 0.0
    unknown: float = 0.0

    @property
    def held(self) -> float:
        """All of them: what is paid for."""
        return self.busy + self.idle + self.starting + self.stopping + self.unknown

    def __add__(self, other: Self) -> ReplicaSeconds:
        return ReplicaSeconds(*(getattr(self, s) + getattr(other, s) for s in STATES))


@dataclass
class _Deployment:
    """What the last sample said, and the seconds before it."""

    at_s: float
    counts: dict[str, int]
    told: dict[str, bool] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STATES, 0.0))
    nodes: set[str] = field(default_factory=set)

    def states(self) -> dict[str, int]:
        """How many replicas are in which state."""
        running = self.counts["running"]
        busy = min(sum(self.told.values()), running)
        idle = min(len(self.told) - sum(self.told.values()), running - busy)
        rest = {"starting": self.counts["starting"], "stopping": self.counts["stopping"]}
        return {"busy": busy, "idle": idle, **rest, "unknown": running - busy - idle}


@dataclass
class _Card:
    """A GPU as last seen, and the energy before it. `power_w` is None where it is not ours."""

    at_s: float
    power_w: float | None
    joules: float = 0.0


class ReplicaSecondsMeter:
    """Takes samples as they come, in the order of their times, and knows the sums so far.

    `deployments` are those that count, all by default; `start_s` and `end_s` cut what lies outside
    (seconds on the run's clock). `see` takes constant time.
    """

    def __init__(
        self,
        deployments: Collection[str] | None = None,
        *,
        start_s: float = 0.0,
        end_s: float = math.inf,
    ) -> None:
        self._own = None if deployments is None else frozenset(deployments)
        self._start_s, self._end_s = start_s, end_s
        self._deployments: dict[str, _Deployment] = {}
        self._cards: dict[tuple[str, int], _Card] = {}

    def see(self, sample: Sample) -> None:
        """Count up to this sample; kinds that tell nothing of replicas or power change nothing."""
        if isinstance(sample, GpuSample):
            self._see_card(sample)
        elif isinstance(sample, DeploymentSample) and self._counts(sample.deployment):
            self._see_deployment(sample)
        elif isinstance(sample, ReplicaSample) and self._counts(sample.deployment):
            self._see_replica(sample)

    def close(self, at_s: float) -> None:
        """The end of the run: what was seen last held until then, as after any sample."""
        for one in self._deployments.values():
            self._spend(one, at_s)
        for card in self._cards.values():
            self._burn(card, at_s)

    def seconds(self) -> dict[str, ReplicaSeconds]:
        """By deployment, up to its last sample."""
        return {name: ReplicaSeconds(**one.seconds) for name, one in self._deployments.items()}

    def held(self) -> dict[str, int]:
        """Replicas held now, whatever their state, by deployment."""
        return {name: sum(one.counts.values()) for name, one in self._deployments.items()}

    def energy_kwh(self) -> float | None:
        """Of the cards on nodes that held a replica of ours; None where no power was reported.

        A card counts whole, whoever else computes on it.
        """
        known = [c.joules for c in self._cards.values() if c.power_w is not None or c.joules]
        return sum(known) / JOULES_PER_KWH if known else None

    def _counts(self, deployment: str) -> bool:
        return self._own is None or deployment in self._own

    def _see_deployment(self, sample: DeploymentSample) -> None:
        counts = {s: getattr(sample, s) for s in ("running", "starting", "stopping")}
        if None in counts.values():
            return  # it tells nothing: what was seen before still holds
        one = self._deployments.setdefault(
            sample.deployment, _Deployment(at_s=sample.time_s, counts=counts)
        )
        self._spend(one, sample.time_s)
        one.counts, one.told, one.nodes = counts, {}, set()

    def _see_replica(self, sample: ReplicaSample) -> None:
        one = self._deployments.get(sample.deployment)
        if one is None or sample.time_s < one.at_s:
            return
        one.nodes.add(sample.node)
        requests = [sample.running_requests, sample.waiting_requests]
        if sample.state in (None, "running") and requests != [None, None]:
            one.told[sample.replica] = any(requests)

    def _see_card(self, sample: GpuSample) -> None:
        ours = any(sample.node in one.nodes for one in self._deployments.values())
        power = sample.power_w if ours else None
        key = (sample.node, sample.gpu)
        card = self._cards.setdefault(key, _Card(at_s=sample.time_s, power_w=power))
        self._burn(card, sample.time_s)
        card.power_w = power

    def _spend(self, one: _Deployment, at_s: float) -> None:
        if at_s < one.at_s:
            return
        gap, seconds = at_s - one.at_s > MAX_GAP_S, self._within(one.at_s, at_s)
        for state, replicas in one.states().items():
            one.seconds["unknown" if gap else state] += replicas * seconds
        one.at_s = at_s

    def _burn(self, card: _Card, at_s: float) -> None:
        if at_s >= card.at_s:
            card.joules += (card.power_w or 0.0) * self._within(card.at_s, at_s)
            card.at_s = at_s

    def _within(self, from_s: float, to_s: float) -> float:
        return max(0.0, min(to_s, self._end_s) - max(from_s, self._start_s))


def replica_seconds_of(
    samples: Iterable[Sample],
    deployments: Collection[str] | None = None,
    *,
    start_s: float = 0.0,
    end_s: float | None = None,
) -> ReplicaSecondsMeter:
    """The ledger of a whole run, `Run.samples()`; with `end_s`, what was last seen holds until
    then.
    """
    ledger = ReplicaSecondsMeter(
        deployments, start_s=start_s, end_s=math.inf if end_s is None else end_s
    )
    for sample in samples:
        ledger.see(sample)
    if end_s is not None:
        ledger.close(end_s)
    return ledger
