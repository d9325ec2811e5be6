"""The steps from a change of load to the replica that answers it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from workbench.records import DecisionSample, DeploymentSample, LoadChange, ReplicaSample
from workbench.workload.arrivals import ClosedLoop, TraceReplay
from workbench.workload.rate_curve import change_times
from workbench.workload.spec import LoadSpec

if TYPE_CHECKING:
    from workbench.runs.run import Run

SAMPLES_BEFORE_S = 5
"""Seconds before a change of load from which the autoscaler's usual count is read."""


@dataclass(frozen=True)
class Reaction:
    """One decision, from the change of load that caused it to the replica that answers it.

    Times are seconds on the run's clock, None if the event did not happen or is unknown. A decision
    to scale down ends with `stopped_s`, when no more replicas are left than the target.
    """

    deployment: str
    from_target: int
    to_target: int
    load_changed_s: float | None
    metrics_changed_s: float | None
    requested_s: float | None
    delay_passed_s: float | None
    scheduled_s: float | None = None
    loaded_s: float | None = None
    first_token_s: float | None = None
    stopped_s: float | None = None

    @property
    def up(self) -> bool:
        """Whether the target rose."""
        return self.to_target > self.from_target

    @property
    def cold_start_s(self) -> float | None:
        """Seconds from the load that woke a deployment at zero to its first token, else None."""
        if self.from_target or self.load_changed_s is None or self.first_token_s is None:
            return None
        return self.first_token_s - self.load_changed_s

    def marks(self) -> list[tuple[str, float]]:
        """Return what happened and when, in order. What is unknown is left out."""
        named = [
            ("load changed", self.load_changed_s),
            ("metrics changed", self.metrics_changed_s),
            ("change requested", self.requested_s),
            ("delay passed", self.delay_passed_s),
            ("actor scheduled", self.scheduled_s),
            ("engine loaded", self.loaded_s),
            ("first token served", self.first_token_s),
            ("replicas stopped", self.stopped_s),
        ]
        return [(name, at) for name, at in named if at is not None]

    def steps(self) -> list[tuple[str, float, float]]:
        """Return (name, start_s, end_s) of the time before each mark. They add up to the whole."""
        return [(name, start, end) for (_, start), (name, end) in pairwise(self.marks())]


def reactions(
    samples: Sequence[DeploymentSample],
    decisions: Sequence[DecisionSample],
    *,
    load_changes_s: Sequence[float] = (),
    replicas: Sequence[ReplicaSample] = (),
    first_tokens_s: Sequence[float] = (),
) -> list[Reaction]:
    """Return the reaction behind each decision of one run.

    Args:
        samples: The deployment samples.
        decisions: The decisions.
        load_changes_s: The times at which the offered load changed.
        replicas: The replica samples.
        first_tokens_s: The times of the requests' first tokens. They show that a deployment that
            was scaled to zero answers again before its own counters are read.
    """
    changes, tokens = sorted(load_changes_s), sorted(first_tokens_s)
    results = []
    for decision in decisions:
        same = [other for other in decisions if other.deployment == decision.deployment]
        series = [sample for sample in samples if sample.deployment == decision.deployment]
        until_s = _overtaken(decision, same)
        results.append(_reaction(decision, series, until_s, changes, replicas, tokens))
    return results


def _overtaken(decision: DecisionSample, same: Sequence[DecisionSample]) -> float:
    """Return when the next decision took over: after a stop, the next that needs more replicas."""
    up = decision.to_target > decision.from_target
    later = (other for other in same if other.time_s > decision.time_s)
    times = (other.time_s for other in later if up or other.to_target > decision.to_target)
    return min(times, default=float("inf"))


def _reaction(
    decision: DecisionSample,
    series: Sequence[DeploymentSample],
    until_s: float,
    changes: Sequence[float],
    replicas: Sequence[ReplicaSample],
    first_tokens_s: Sequence[float],
) -> Reaction:
    up = decision.to_target > decision.from_target
    wanted_s = decision.wanted_s if decision.wanted_s is not None else decision.time_s
    changed_s = max((at for at in changes if at <= wanted_s), default=None)
    common: dict[str, Any] = {
        "deployment": decision.deployment,
        "from_target": decision.from_target,
        "to_target": decision.to_target,
        "load_changed_s": changed_s,
        "metrics_changed_s": _metrics_changed(series, changed_s, wanted_s, up),
        "requested_s": wanted_s,
        "delay_passed_s": decision.time_s,
    }
    after = [sample for sample in series if decision.time_s <= sample.time_s]
    if not up:
        own = (sample for sample in after if sample.time_s < until_s)
        stopped = _first(own, lambda sample: _at_most(sample, decision.to_target))
        return Reaction(**common, stopped_s=stopped)
    new = _new_replicas(decision, replicas, until_s)
    scheduled = min((sample.time_s for sample in new), default=None)
    if scheduled is None:
        scheduled = _first(after, lambda sample: bool(sample.starting))
    loaded = _first(after, lambda sample: (sample.running or 0) >= decision.to_target)
    served = _served(decision, new, loaded, first_tokens_s)
    if served is not None and loaded is not None:
        loaded = min(loaded, served)  # the first token may come between two samples
    return Reaction(**common, scheduled_s=scheduled, loaded_s=loaded, first_token_s=served)


def _metrics_changed(
    series: Sequence[DeploymentSample], changed_s: float | None, wanted_s: float, up: bool
) -> float | None:
    """Return when the autoscaler's count first left its range before the load changed_s."""
    if changed_s is None:
        return None
    known = [
        (sample.time_s, sample.total_requests)
        for sample in series
        if sample.total_requests is not None
    ]
    before = [value for at, value in known if changed_s - SAMPLES_BEFORE_S <= at <= changed_s]
    edge = (max if up else min)(before, default=0.0 if up else float("inf"))
    after = [at for at, value in known if at > changed_s and (value > edge if up else value < edge)]
    return min(min(after, default=wanted_s), wanted_s)


def _new_replicas(
    decision: DecisionSample, replicas: Sequence[ReplicaSample], until_s: float
) -> list[ReplicaSample]:
    """Return the samples of replicas that did not exist when the decision was made."""
    same = [sample for sample in replicas if sample.deployment == decision.deployment]
    old = {sample.replica for sample in same if sample.time_s < decision.time_s}
    first_s: dict[str, float] = {}
    for sample in same:
        first_s.setdefault(sample.replica, sample.time_s)
    return [s for s in same if s.replica not in old and first_s[s.replica] < until_s]


def _served(
    decision: DecisionSample,
    new: Sequence[ReplicaSample],
    loaded: float | None,
    first_tokens_s: Sequence[float],
) -> float | None:
    """Return when a new replica served its first token, None if it is unknown."""
    times = [sample.time_s for sample in new if sample.has_served]
    if decision.from_target == 0:
        times += [at for at in first_tokens_s if at >= decision.time_s][:1]
    elif times and loaded is not None:
        return max(min(times), loaded)
    return min(times, default=None)


def _at_most(sample: DeploymentSample, target: int) -> bool:
    counts = [sample.running, sample.starting, sample.stopping]
    return sum(count or 0 for count in counts) <= target


def _first(
    series: Iterable[DeploymentSample], holds: Callable[[DeploymentSample], bool]
) -> float | None:
    return next((sample.time_s for sample in series if holds(sample)), None)


def load_changes(load: LoadSpec | Iterable[LoadChange], start_s: float = 0.0) -> list[float]:
    """Return the times at which an offered load changes, on the run's clock.

    A rate that rises or falls in a line changes where the line begins. The end of a load is a
    change. A closed loop and a trace change only at their start.

    Args:
        load: A planned load, or the recorded changes of a live one (`Run.changes`).
        start_s: When the planned load started. Recorded changes have their own times.
    """
    if not isinstance(load, LoadSpec):
        return change_times(load)
    if isinstance(load.arrivals, ClosedLoop | TraceReplay):
        return [start_s]
    at, last_rate, times = 0.0, 0.0, []
    until = float("inf") if load.duration_s is None else load.duration_s
    for segment in load.arrivals.segments():
        if at >= until:
            break
        if not segment.from_rate == segment.to_rate == last_rate:
            times.append(start_s + at)
        at, last_rate = at + segment.duration_s, segment.to_rate
    end = min(at, until)
    return [*times, start_s + end] if last_rate and end != float("inf") else times


def run_reactions(run: Run, load_changes_s: Sequence[float] | None = None) -> list[Reaction]:
    """Return the reactions of a saved run.

    `load_changes_s` is not needed for a live load, which recorded its changes.
    """
    samples = list(run.samples())
    first_tokens = (record.first_token_s for record in run.records())
    return reactions(
        [sample for sample in samples if isinstance(sample, DeploymentSample)],
        [sample for sample in samples if isinstance(sample, DecisionSample)],
        load_changes_s=load_changes(run.changes()) if load_changes_s is None else load_changes_s,
        replicas=[sample for sample in samples if isinstance(sample, ReplicaSample)],
        first_tokens_s=[at for at in first_tokens if at is not None],
    )
