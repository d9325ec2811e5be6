"""Replica-seconds from samples: how long replicas were held, and in which state. Pure.

A sample holds until the next sample of the same deployment. A state therefore counts from the
moment it was first sampled to the moment another one was, and the error is at most one sampling
interval (a second) per change, in either direction. A running replica is busy while its engine has
a request running or waiting, and idle while it has none.

A gap is not zero. If the next sample comes more than `MAX_GAP_S` later, or an engine reports
nothing, the replicas of the last sample still count, because they still cost money, but in the
state `unknown`. Nothing counts before a deployment's first sample and after its last.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Self

from workbench.records import DeploymentSample, GpuSample, ReplicaSample, Sample

MAX_GAP_S = 5.0
"""Samples are taken once a second. Two that are further apart have a gap between them."""
COST_STATES = ("busy", "idle", "starting", "stopping", "unknown")
JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class ReplicaSeconds:
    """Seconds for which replicas of one deployment were held, by state."""

    busy: float = 0.0
    idle: float = 0.0
    starting: float = 0.0
    stopping: float = 0.0
    unknown: float = 0.0

    @property
    def total(self) -> float:
        """The sum over all states, which is what is paid for."""
        return self.busy + self.idle + self.starting + self.stopping + self.unknown

    def __add__(self, other: Self) -> ReplicaSeconds:
        return ReplicaSeconds(*(getattr(self, s) + getattr(other, s) for s in COST_STATES))


@dataclass
class _Deployment:
    """The last sample of a deployment, and the seconds up to it."""

    at_s: float
    counts: dict[str, int]
    busy_replicas: dict[str, bool] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(COST_STATES, 0.0))
    nodes: set[str] = field(default_factory=set)

    def states(self) -> dict[str, int]:
        """Return the number of replicas in each state."""
        running, reported = self.counts["running"], list(self.busy_replicas.values())
        busy = min(sum(reported), running)
        idle = min(len(reported) - sum(reported), running - busy)
        moving = {"starting": self.counts["starting"], "stopping": self.counts["stopping"]}
        return {"busy": busy, "idle": idle, **moving, "unknown": running - busy - idle}


@dataclass
class _Card:
    """The last sample of a GPU, and the energy up to it. `power_w` is None if it is not ours."""

    at_s: float
    power_w: float | None
    joules: float = 0.0


class ReplicaSecondsMeter:
    """Replica-seconds and energy so far, from samples in the order of their times.

    `observe` takes constant time.

    Args:
        deployments: The deployments that count, all by default.
        start_s: Seconds on the run's clock; nothing counts before.
        end_s: Seconds on the run's clock; nothing counts after.
    """

    def __init__(
        self,
        deployments: Collection[str] | None = None,
        *,
        start_s: float = 0.0,
        end_s: float = math.inf,
    ) -> None:
        self._counted = None if deployments is None else frozenset(deployments)
        self._start_s, self._end_s = start_s, end_s
        self._deployments: dict[str, _Deployment] = {}
        self._cards: dict[tuple[str, int], _Card] = {}

    def observe(self, sample: Sample) -> None:
        """Count up to this sample. Kinds without replicas or power change nothing."""
        if isinstance(sample, GpuSample):
            self._observe_card(sample)
        elif isinstance(sample, DeploymentSample) and self._counts(sample.deployment):
            self._observe_deployment(sample)
        elif isinstance(sample, ReplicaSample) and self._counts(sample.deployment):
            self._observe_replica(sample)

    def close(self, at_s: float) -> None:
        """Count up to the end of the run, as if there were a sample at `at_s`."""
        for deployment in self._deployments.values():
            self._accrue_seconds(deployment, at_s)
        for card in self._cards.values():
            self._accrue_energy(card, at_s)

    def seconds(self) -> dict[str, ReplicaSeconds]:
        """Return the replica-seconds by deployment, up to its last sample."""
        return {
            name: ReplicaSeconds(**deployment.seconds)
            for name, deployment in self._deployments.items()
        }

    def replicas(self) -> dict[str, int]:
        """Return the number of replicas now, in any state, by deployment."""
        return {
            name: sum(deployment.counts.values()) for name, deployment in self._deployments.items()
        }

    def energy_kwh(self) -> float | None:
        """Return the energy of the GPUs on nodes with a counted replica, None if unreported.

        A GPU counts in full, whatever else computes on it.
        """
        known = [c.joules for c in self._cards.values() if c.power_w is not None or c.joules]
        return sum(known) / JOULES_PER_KWH if known else None

    def _counts(self, deployment: str) -> bool:
        return self._counted is None or deployment in self._counted

    def _observe_deployment(self, sample: DeploymentSample) -> None:
        counts = {s: getattr(sample, s) for s in ("running", "starting", "stopping")}
        if None in counts.values():
            return  # nothing was reported: the previous sample remains valid
        deployment = self._deployments.setdefault(
            sample.deployment, _Deployment(at_s=sample.time_s, counts=counts)
        )
        self._accrue_seconds(deployment, sample.time_s)
        deployment.counts, deployment.busy_replicas, deployment.nodes = counts, {}, set()

    def _observe_replica(self, sample: ReplicaSample) -> None:
        deployment = self._deployments.get(sample.deployment)
        if deployment is None or sample.time_s < deployment.at_s:
            return
        deployment.nodes.add(sample.node)
        requests = [sample.running_requests, sample.waiting_requests]
        if sample.state in (None, "running") and requests != [None, None]:
            deployment.busy_replicas[sample.replica] = any(requests)

    def _observe_card(self, sample: GpuSample) -> None:
        ours = any(sample.node in deployment.nodes for deployment in self._deployments.values())
        power = sample.power_w if ours else None
        key = (sample.node, sample.gpu)
        card = self._cards.setdefault(key, _Card(at_s=sample.time_s, power_w=power))
        self._accrue_energy(card, sample.time_s)
        card.power_w = power

    def _accrue_seconds(self, deployment: _Deployment, at_s: float) -> None:
        if at_s < deployment.at_s:
            return
        gap = at_s - deployment.at_s > MAX_GAP_S
        seconds = self._within(deployment.at_s, at_s)
        for state, replicas in deployment.states().items():
            deployment.seconds["unknown" if gap else state] += replicas * seconds
        deployment.at_s = at_s

    def _accrue_energy(self, card: _Card, at_s: float) -> None:
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
    """Return a meter that has observed the samples of a whole run.

    Args:
        samples: In the order of their times.
        deployments: The deployments that count, all by default.
        start_s: Seconds on the run's clock; nothing counts before.
        end_s: Seconds on the run's clock. The last samples hold until then. Without it, counting
            ends with the last samples.
    """
    meter = ReplicaSecondsMeter(
        deployments, start_s=start_s, end_s=math.inf if end_s is None else end_s
    )
    for sample in samples:
        meter.observe(sample)
    if end_s is not None:
        meter.close(end_s)
    return meter
