"""What was changed in a live load, and when; and the rate it wanted at any time. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from workbench.workload.spec import LoadSpec

What = Literal[
    "start", "rate", "burstiness", "output_tokens", "pause", "resume", "late", "scaling", "end"
]


@dataclass(frozen=True, slots=True)
class LoadChange:
    """A line of `load.jsonl`: from `time_s` on (seconds on the run's clock), `what` is `value`.

    `start` has the `load` as planned, `burstiness` None for even gaps, and `late` how many requests
    were left out because the client could not send them in time. `note` says what a reader must
    know: why a rate is not the one that was asked for, why the load ended early.
    """

    time_s: float
    what: What
    value: float | None = None
    note: str | None = None
    load: Mapping[str, Any] | None = None


def offered(changes: Iterable[LoadChange], times: Sequence[float]) -> list[float]:
    """The rate wanted at each of `times` (rising), in requests per second; 0 outside the load."""
    from workbench.workload.live_schedule import RateCurve

    rest, curve = list(changes), RateCurve(0.0, float("-inf"))
    rates = []
    for at in times:
        while rest and rest[0].time_s <= at:
            change = rest.pop(0)
            curve.advance(change.time_s)
            curve = _changed(curve, change)
        rates.append(curve.rate_at(at))
    return rates


def change_times(changes: Iterable[LoadChange]) -> list[float]:
    """When the load changed: the corners of its plan, and what a hand did, in order."""
    corners: list[float] = []
    found: list[float] = []
    paused_s: float | None = None
    for change in changes:
        reached = [at for at in corners if at <= change.time_s and paused_s is None]
        found += reached
        corners = [at for at in corners if at not in reached]
        if change.what == "start" and change.load is not None:
            corners = _corners(change)
        elif change.what == "resume" and paused_s is not None:
            corners = [at + change.time_s - paused_s for at in corners]
            paused_s = None
        if change.what == "pause":
            paused_s = change.time_s
        elif change.what == "rate":
            corners, paused_s = [], None
        if change.what in ("rate", "pause", "resume"):
            found.append(change.time_s)
    return found


def _corners(start: LoadChange) -> list[float]:
    """Where a piece of the plan begins, and where the last one ends."""
    arrivals: Any = LoadSpec(**(start.load or {})).arrivals
    at, found = start.time_s, [start.time_s]
    for piece in arrivals.pieces():
        at += piece.duration_s
        found.append(at)
    return found


def _changed(curve: Any, change: LoadChange) -> Any:
    from workbench.workload.live_schedule import RateCurve

    if change.what == "start" and change.load is not None:
        return RateCurve(LoadSpec(**change.load).arrivals.pieces(), change.time_s)  # type: ignore[union-attr]
    if change.what == "rate" and change.value is not None:
        curve.set_rate(change.value)
    elif change.what in ("pause", "resume"):
        curve.paused = change.what == "pause"
    elif change.what == "end":
        return RateCurve(0.0, change.time_s)
    return curve
