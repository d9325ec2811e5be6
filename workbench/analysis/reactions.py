"""Where the time went between a change of load and the replica that answers it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from workbench.records import DecisionSample, DeploymentSample, ReplicaSample
from workbench.workload.arrivals import ClosedLoop, TraceReplay
from workbench.workload.rate_curve import change_times

if TYPE_CHECKING:
    from workbench.runs.run import Run
    from workbench.workload.spec import LoadSpec


@dataclass(frozen=True)
class Reaction:
    """One decision, from the change of load behind it to the replica that answers it.

    Times are seconds on the run's clock; what did not happen, or cannot be told, is None. A
    decision to go down ends with `stopped_s`, when no more replicas run than wanted.
    """

    deployment: str
    from_target: int
    to_target: int
    load_changed_s: float | None
    metric_saw_s: float | None
    policy_wanted_s: float | None
    delay_passed_s: float | None
    scheduled_s: float | None = None
    loaded_s: float | None = None
    first_token_s: float | None = None
    stopped_s: float | None = None

    @property
    def up(self) -> bool:
        return self.to_target > self.from_target

    @property
    def cold_start_s(self) -> float | None:
        """From the load that woke a sleeping deployment to its first token; None for others."""
        if self.from_target or self.load_changed_s is None or self.first_token_s is None:
            return None
        return self.first_token_s - self.load_changed_s

    def marks(self) -> list[tuple[str, float]]:
        """What happened, in order, and when; what is not known is left out."""
        named = [
            ("load changed", self.load_changed_s),
            ("metric saw it", self.metric_saw_s),
            ("policy wanted it", self.policy_wanted_s),
            ("delay passed", self.delay_passed_s),
            ("actor scheduled", self.scheduled_s),
            ("engine loaded", self.loaded_s),
            ("first token served", self.first_token_s),
            ("replicas stopped", self.stopped_s),
        ]
        return [(name, at) for name, at in named if at is not None]

    def steps(self) -> list[tuple[str, float, float]]:
        """Each mark with the time before it: (name, start_s, end_s). They add up to the whole."""
        return [(name, start, end) for (_, start), (name, end) in pairwise(self.marks())]


def reactions(
    samples: Sequence[DeploymentSample],
    made: Sequence[DecisionSample],
    *,
    load_changes_s: Sequence[float] = (),
    replicas: Sequence[ReplicaSample] = (),
    first_tokens_s: Sequence[float] = (),
) -> list[Reaction]:
    """The reaction behind each decision of one run.

    `load_changes_s` are the times at which the offered load changed, `replicas` the replica
    samples, and `first_tokens_s` the requests' first tokens, by which a deployment that slept is
    known to answer again before its own counters are read.
    """
    own = {one.deployment: [s for s in samples if s.deployment == one.deployment] for one in made}
    changes = sorted(load_changes_s)
    found = []
    for decision in made:
        series = own[decision.deployment]
        later = [d.time_s for d in made if d.deployment == decision.deployment]
        until = min((at for at in later if at > decision.time_s), default=float("inf"))
        found.append(_reaction(decision, series, until, changes, replicas, sorted(first_tokens_s)))
    return found


def _reaction(
    decision: DecisionSample,
    series: Sequence[DeploymentSample],
    until_s: float,
    changes: Sequence[float],
    replicas: Sequence[ReplicaSample],
    first_tokens_s: Sequence[float],
) -> Reaction:
    up = decision.to_target > decision.from_target
    wanted = decision.wanted_s if decision.wanted_s is not None else decision.time_s
    changed = max((at for at in changes if at <= wanted), default=None)
    common: dict[str, Any] = {
        "deployment": decision.deployment,
        "from_target": decision.from_target,
        "to_target": decision.to_target,
        "load_changed_s": changed,
        "metric_saw_s": _saw(series, changed, wanted, up),
        "policy_wanted_s": wanted,
        "delay_passed_s": decision.time_s,
    }
    after = [one for one in series if decision.time_s <= one.time_s]
    if not up:
        stopped = _first(after, lambda one: _at_most(one, decision.to_target))
        return Reaction(**common, stopped_s=stopped)
    new = _new_replicas(decision, replicas, until_s)
    scheduled = min((one.time_s for one in new), default=None)
    if scheduled is None:
        scheduled = _first(after, lambda one: bool(one.starting))
    loaded = _first(after, lambda one: (one.running or 0) >= decision.to_target)
    served = _served(decision, new, loaded, first_tokens_s)
    if served is not None and loaded is not None:
        loaded = min(loaded, served)  # it answers between two samples
    return Reaction(**common, scheduled_s=scheduled, loaded_s=loaded, first_token_s=served)


def _saw(
    series: Sequence[DeploymentSample], changed: float | None, wanted: float, up: bool
) -> float | None:
    """When the autoscaler's count first left the range it had before the load changed."""
    if changed is None:
        return None
    known = [(one.time_s, one.total_requests) for one in series if one.total_requests is not None]
    before = [value for at, value in known if changed - 5 <= at <= changed]
    edge = (max if up else min)(before, default=0.0 if up else float("inf"))
    after = [at for at, value in known if at > changed and (value > edge if up else value < edge)]
    return min(min(after, default=wanted), wanted)


def _new_replicas(
    decision: DecisionSample, replicas: Sequence[ReplicaSample], until_s: float
) -> list[ReplicaSample]:
    """Samples of replicas that were not there when the decision fell."""
    own = [one for one in replicas if one.deployment == decision.deployment]
    old = {one.replica for one in own if one.time_s < decision.time_s}
    first: dict[str, float] = {}
    for one in own:
        first.setdefault(one.replica, one.time_s)
    return [one for one in own if one.replica not in old and first[one.replica] < until_s]


def _served(
    decision: DecisionSample,
    new: Sequence[ReplicaSample],
    loaded: float | None,
    first_tokens_s: Sequence[float],
) -> float | None:
    told = [one.time_s for one in new if (one.output_tokens or 0) > 0]
    if decision.from_target == 0:
        told += [at for at in first_tokens_s if at >= decision.time_s][:1]
    elif told and loaded is not None:
        return max(min(told), loaded)
    return min(told, default=None)


def _at_most(sample: DeploymentSample, target: int) -> bool:
    held = [sample.running, sample.starting, sample.stopping]
    return sum(one or 0 for one in held) <= target


def _first(
    series: Iterable[DeploymentSample], holds: Callable[[DeploymentSample], bool]
) -> float | None:
    return next((one.time_s for one in series if holds(one)), None)


def load_changes(load: LoadSpec, start_s: float = 0.0) -> list[float]:
    """When the rate that `load` offers changes, its end included, if it began at `start_s`.

    A rate that grows or falls in a line changes where that begins. A closed loop and a trace have
    a beginning alone.
    """
    if isinstance(load.arrivals, ClosedLoop | TraceReplay):
        return [start_s]
    at, last, found = 0.0, 0.0, []
    until = float("inf") if load.duration_s is None else load.duration_s
    for piece in load.arrivals.segments():
        if at >= until:
            break
        if not piece.from_rate == piece.to_rate == last:
            found.append(start_s + at)
        at, last = at + piece.duration_s, piece.to_rate
    end = min(at, until)
    return [*found, start_s + end] if last and end != float("inf") else found


def run_reactions(run: Run, load_changes_s: Sequence[float] | None = None) -> list[Reaction]:
    """The reactions of a run, from its folder. A live load has kept when it changed."""
    samples = list(run.samples())
    firsts = (record.first_token_s for record in run.records())
    return reactions(
        [one for one in samples if isinstance(one, DeploymentSample)],
        [one for one in samples if isinstance(one, DecisionSample)],
        load_changes_s=change_times(run.changes()) if load_changes_s is None else load_changes_s,
        replicas=[one for one in samples if isinstance(one, ReplicaSample)],
        first_tokens_s=[at for at in firsts if at is not None],
    )
