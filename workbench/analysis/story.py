"""What happened in a run with phases, in sentences that are computed from its records.

Times are minutes and seconds on the run's clock, as in its figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from workbench.analysis.reactions import Reaction, run_reactions
from workbench.experiments.phases import PhaseOutcome, read_phases
from workbench.metrics.summary import summarize
from workbench.quantities import quantity
from workbench.records import DeploymentSample, LoadChange, RequestRecord

if TYPE_CHECKING:
    from workbench.metrics.slo import SLO
    from workbench.runs.run import Run

SAME = 0.1
"""Relative difference of two latencies below which they count as the same."""


def closing_lines(run: Run, *, deployment: str | None, slo: SLO) -> list[str]:
    """Return what happened in the phases of `autoscaling_phases`, one sentence or two per line.

    Args:
        run: The run; without phases the result is empty.
        deployment: The deployment that was scaled.
        slo: The bounds that requests are compared with.
    """
    story = _Story(run, deployment, slo)
    parts: list[tuple[str, Callable[[PhaseOutcome], list[str]]]] = [
        ("start", story.start),
        ("steady", story.steady),
        ("rise", story.rise),
        ("scale-up", story.scale_up),
        ("hold", story.hold),
        ("drop", story.drop),
        ("wake-up", story.wake_up),
    ]
    lines = [
        line for name, tell in parts if name in story.phases for line in tell(story.phases[name])
    ]
    return lines + story.end()


def at(time_s: float) -> str:
    """Return a time on the run's clock: "1:05"."""
    return f"{int(time_s) // 60}:{int(time_s) % 60:02d}"


def after(seconds: float) -> str:
    """Return a duration whose ends are a second apart at best: "21 s"."""
    return f"{seconds:.0f} s" if seconds >= 1 else "less than 1 s"


@dataclass
class _Story:
    run: Run
    deployment: str | None
    slo: SLO

    @cached_property
    def phases(self) -> dict[str, PhaseOutcome]:
        return {phase.name: phase for phase in read_phases(self.run)}

    @cached_property
    def records(self) -> list[RequestRecord]:
        return list(self.run.records())

    @cached_property
    def samples(self) -> list[DeploymentSample]:
        own = (s for s in self.run.samples() if isinstance(s, DeploymentSample))
        return [sample for sample in own if sample.deployment == self.deployment]

    @cached_property
    def changes(self) -> list[LoadChange]:
        return [change for change in self.run.changes() if change.what in ("start", "rate")]

    @cached_property
    def second(self) -> Reaction | None:
        """The decision for more than one replica that answered the rise.

        That is the first one after it, or an earlier one that was still in force.
        """
        end_s = self.phases["drop"].start_s if "drop" in self.phases else math.inf
        rise_s = self.phases["rise"].start_s if "rise" in self.phases else 0.0
        found = None
        for reaction in run_reactions(self.run):
            decided_s = reaction.delay_passed_s or 0.0
            if reaction.deployment != self.deployment or decided_s >= end_s:
                continue
            if decided_s >= rise_s and found is not None:
                break
            if reaction.from_target < 2 <= reaction.to_target:
                found = reaction
            elif reaction.to_target < 2:
                found = None
        return found

    def start(self, phase: PhaseOutcome) -> list[str]:
        """Return how long the first request waited, if there was no replica."""
        if not self.records or not self.samples or self.samples[0].running:
            return []
        first = min(self.records, key=lambda record: record.due_s)
        return [f"No replica was running at the start. The first request {_first_token(first)}."]

    def steady(self, phase: PhaseOutcome) -> list[str]:
        """Return whether latency was within the SLO before the load rose."""
        if phase.ended_by != "limit":
            return []
        return [f"Requests did not meet the SLO within {after(phase.end_s - phase.start_s)}."]

    def rise(self, phase: PhaseOutcome) -> list[str]:
        """Return how the load rose, when a second replica was requested, and when it served."""
        risen = [c for c in self.changes if phase.start_s <= c.time_s <= phase.end_s]
        if not risen:
            return []
        load = _rise(self._rate_before(risen[0]), risen)
        limit = after(phase.end_s - phase.start_s)
        if not self.samples:
            return [f"{load}; there is no telemetry of replicas."]
        if self.second is None:
            return [f"{load}; the autoscaler did not request a second replica within {limit}."]
        requested_s = self.second.delay_passed_s or 0.0
        if requested_s < risen[0].time_s:
            request = f"had requested a second replica at {at(requested_s)}"
        else:
            request = f"requested a second replica {after(requested_s - risen[0].time_s)} later"
        return [f"{load}; the autoscaler {request}, which {_served(self.second, requested_s)}."]

    def scale_up(self, phase: PhaseOutcome) -> list[str]:
        """Return whether latency recovered."""
        if phase.ended_by == "reached":
            return []
        late = [r for r in self._due(phase) if r.due_s >= phase.end_s - 10]
        worst = quantity(_ttft_p95_s(late), "s")
        return [
            f"Latency did not recover within {after(phase.end_s - phase.start_s)}: TTFT p95 of the "
            f"last 10 s was {worst}."
        ]

    def hold(self, phase: PhaseOutcome) -> list[str]:
        """Return TTFT before and after, and the share of requests that met the SLO."""
        start_s = self.phases["rise"].start_s if "rise" in self.phases else phase.start_s
        before = [r for r in self.records if start_s <= r.due_s < phase.start_s]
        good = self._due(phase)
        if not good:
            return ["No request was due in the phase after that."]
        lines = [_compare(_ttft_p95_s(before), _ttft_p95_s(good))]
        share = summarize(good, slo=self.slo).slo_attainment
        if share is not None:
            lines.append(
                f"{quantity(math.floor(share * 1000) / 1000, 'share')} of the {len(good)} requests "
                f"from {at(phase.start_s)} to {at(phase.end_s)} met the SLO."
            )
        return [line for line in lines if line]

    def drop(self, phase: PhaseOutcome) -> list[str]:
        """Return when the last replica had stopped."""
        later = [s for s in self.samples if s.time_s >= phase.start_s]
        empty = (s.time_s for s in later if not any((s.target, s.running, s.starting, s.stopping)))
        zero_s = next(empty, None)
        load = f"The load ended at {at(phase.start_s)}"
        if not later:
            return [f"{load}; there is no telemetry of replicas."]
        if zero_s is None or zero_s > phase.end_s:
            limit = after(phase.end_s - phase.start_s)
            return [f"{load}; its last replica had not stopped {limit} later."]
        return [f"{load}; the last replica had stopped {after(zero_s - phase.start_s)} later."]

    def wake_up(self, phase: PhaseOutcome) -> list[str]:
        """Return how long the first request waited for a replica."""
        due = sorted(self._due(phase), key=lambda record: record.due_s)
        if not due:
            return [f"No request was sent after {at(phase.start_s)}."]
        return [f"The next request, at {at(due[0].due_s)}, {_first_token(due[0])}."]

    def end(self) -> list[str]:
        """Return why the phases ended early, and how many requests failed."""
        lines = []
        last = next(reversed(self.phases.values()), None)
        if last is not None and last.ended_by in ("manual", "stopped"):
            why = "a person set the rate" if last.ended_by == "manual" else "the load was stopped"
            lines.append(f"The phases ended at {at(last.end_s)}, in {last.name}, because {why}.")
        failed = sum(record.status not in ("ok", "cancelled") for record in self.records)
        if failed:
            lines.append(f"{failed} of {len(self.records)} requests failed.")
        return lines

    def _due(self, phase: PhaseOutcome) -> list[RequestRecord]:
        return [r for r in self.records if phase.start_s <= r.due_s < phase.end_s]

    def _rate_before(self, change: LoadChange) -> float | None:
        before = [other for other in self.changes if other.time_s < change.time_s]
        if not before:
            return None
        last = before[-1]
        if last.what == "rate":
            return last.value
        rate = ((last.load or {}).get("arrivals") or {}).get("rate")
        return None if rate is None else float(rate)


def _rise(before: float | None, changes: Sequence[LoadChange]) -> str:
    first, last = changes[0].value or 0.0, changes[-1].value or 0.0
    if before and math.isclose(first, 2 * before, rel_tol=0.01):
        text = f"The load doubled to {quantity(first)} requests/s at {at(changes[0].time_s)}"
    else:
        text = f"The load rose to {quantity(first)} requests/s at {at(changes[0].time_s)}"
    if last > first:
        text += f" and rose to {quantity(last)} by {at(changes[-1].time_s)}"
    return text


def _served(second: Reaction, requested_s: float) -> str:
    if second.first_token_s is not None:
        return f"served its first token {after(second.first_token_s - requested_s)} after that"
    if second.loaded_s is not None:
        return f"ran {after(second.loaded_s - requested_s)} after that, but served no request"
    return "never ran"


def _first_token(request: RequestRecord) -> str:
    if request.first_token_s is None:
        return f"failed: {request.error or request.status}"
    return f"got its first token {after(request.first_token_s - request.due_s)} later"


def _ttft_p95_s(records: Sequence[RequestRecord]) -> float | None:
    """Return the 95th percentile of the time from when a request was sent to its first token."""
    times = [
        r.first_token_s - r.sent_s
        for r in records
        if r.status == "ok" and r.first_token_s is not None and r.sent_s is not None
    ]
    return float(np.percentile(times, 95)) if times else None


def _compare(before_s: float | None, after_s: float | None) -> str:
    if after_s is None:
        return "No request completed after that."
    if before_s is None:
        return f"TTFT p95 was then {quantity(after_s, 's')}."
    if abs(after_s - before_s) <= SAME * before_s:
        return (
            f"TTFT p95 hardly changed, from {quantity(before_s, 's')} to {quantity(after_s, 's')}."
        )
    verb = "fell" if after_s < before_s else "rose"
    return f"TTFT p95 {verb} from {quantity(before_s, 's')} to {quantity(after_s, 's')}."
