"""Arrivals that are changed while they run. Pure: every call is told the time."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from workbench.errors import SettingError
from workbench.records import LoadChange
from workbench.workload.arrivals import MAX_RATE, MIN_BURSTINESS, RateSegment
from workbench.workload.schedule import unit_gap
from workbench.workload.spec import LoadSpec

if TYPE_CHECKING:
    import numpy as np


class RateCurve:
    """A rate over time: planned pieces, until another rate is set; it can be paused.

    Times are seconds on one clock and go forward. The first piece starts at `start_s`; after the
    last one the rate is 0, and the plan is over (`ends_s`). A rate set by hand has no end.
    """

    def __init__(self, plan: float | Iterable[RateSegment], start_s: float = 0.0) -> None:
        """Raises SettingError for a rate that is none."""
        self.at_s = start_s
        self.paused = False
        if isinstance(plan, int | float):
            self._hold(checked_rate(plan))
        else:
            self._pieces, self._ends = deque(plan), True

    @property
    def ends_s(self) -> float | None:
        """When the plan is over; None while paused and after a rate was set by hand."""
        if self.paused or not self._ends:
            return None
        end_s = self.at_s + sum(piece.duration_s for piece in self._pieces)
        return end_s if end_s < math.inf else None

    def rate_at(self, at_s: float) -> float:
        """Requests per second at a time not before the last one told; 0 while paused."""
        start_s = self.at_s
        for piece in () if self.paused else self._pieces:
            if at_s < start_s + piece.duration_s:
                return piece.rate_at(max(0.0, at_s - start_s))
            start_s += piece.duration_s
        return 0.0

    def when(self, requests: float) -> float | None:
        """When so many requests will have come, counted from the last time told, if ever."""
        start_s = self.at_s
        for piece in () if self.paused else self._pieces:
            if requests < piece.requests:
                return start_s + piece.when(requests)
            start_s, requests = start_s + piece.duration_s, requests - piece.requests
        return None

    def advance(self, at_s: float) -> float:
        """Go on to `at_s`; the integral of the rate on the way."""
        requests = 0.0
        while self._pieces and not self.paused and self.at_s < at_s:
            piece = self._pieces.popleft()
            step = min(at_s - self.at_s, piece.duration_s)
            before, after = piece.cut(step)
            requests, self.at_s = requests + before.requests, self.at_s + step
            if after.duration_s > 0:
                self._pieces.appendleft(after)
        self.at_s = max(self.at_s, at_s)
        return requests

    def set_rate(self, rate: float) -> None:
        """From here on this rate instead of the plan. Ends a pause. Raises SettingError."""
        self._hold(checked_rate(rate))
        self.paused = False

    def _hold(self, rate: float) -> None:
        self._pieces = deque([RateSegment(math.inf, rate, rate)] if rate else [])
        self._ends = False


class LiveSchedule:
    """Arrivals whose rate and burstiness can be changed while they run.

    Pure: every call is told the time, in seconds on one clock. A driver waits until `due_s` or a
    change, whichever is first, then takes with `next` all that is due. A change acts at once: what
    is left of the pending gap is stretched or shortened to the new rate. A rate of 0 pauses, and
    the gap goes on where it was; a plan that is paused goes on where it was, too. Without changes
    the times are those of `workbench.workload.schedule.offsets`.
    """

    def __init__(
        self,
        plan: float | Iterable[RateSegment],
        rng: np.random.Generator,
        *,
        burstiness: float | None = 1.0,
        start_s: float = 0.0,
    ) -> None:
        """`plan` is a rate or the pieces of one. Raises SettingError for a value that is none."""
        self._rng = rng
        self.curve = RateCurve(plan, start_s)
        self._burstiness = checked_burstiness(burstiness)
        self._left = 0.0 if burstiness is None else unit_gap(rng, burstiness)
        # Due before a change, and not taken yet: the change must not move them.
        self._ready: deque[float] = deque()

    @property
    def rate(self) -> float:
        """Requests per second at the last request taken or change made; 0 while paused."""
        return self.curve.rate_at(self.curve.at_s)

    @property
    def burstiness(self) -> float | None:
        """The shape of the gamma law of the gaps; None for even ones."""
        return self._burstiness

    @property
    def due_s(self) -> float | None:
        """When the next request is due; None while paused and after the plan's end."""
        return self._ready[0] if self._ready else self.curve.when(self._left)

    def next(self, now_s: float) -> float | None:
        """Take the next request if it is due by `now_s`: when it was due. None if none is."""
        due_s = self.due_s
        if due_s is None or due_s > now_s:
            return None
        return self._ready.popleft() if self._ready else self._take(due_s)

    def set_rate(self, rate: float, at_s: float) -> None:
        """Go on at `rate` from `at_s`, or from the last request taken or change made if later.

        It takes the place of the plan. Raises SettingError for a rate that is none; the old one
        then holds.
        """
        rate = checked_rate(rate)
        self._advance(at_s)
        self.curve.set_rate(rate)

    def set_burstiness(self, burstiness: float | None, at_s: float) -> None:
        """Draw the gaps after the pending one from the new law. Otherwise as `set_rate`."""
        burstiness = checked_burstiness(burstiness)
        self._advance(at_s)
        self._burstiness = burstiness

    def pause(self, at_s: float) -> None:
        """Nothing more from `at_s` on, until `resume`."""
        self._advance(at_s)
        self.curve.paused = True

    def resume(self, at_s: float) -> None:
        """Go on where `pause` came."""
        self._advance(at_s)
        self.curve.paused = False

    def _take(self, due_s: float) -> float:
        self.curve.advance(due_s)
        self._left = unit_gap(self._rng, self._burstiness)
        return due_s

    def _advance(self, at_s: float) -> None:
        while (due_s := self.curve.when(self._left)) is not None and due_s <= at_s:
            self._ready.append(self._take(due_s))
        self._left = max(0.0, self._left - self.curve.advance(at_s))


def checked_rate(rate: float) -> float:
    """`rate`, or SettingError."""
    if not 0 <= rate <= MAX_RATE:
        raise SettingError(f"rate is {rate}: give 0 (a pause) to {MAX_RATE:g} requests per second")
    return rate


def checked_burstiness(burstiness: float | None) -> float | None:
    """`burstiness`, or SettingError."""
    if burstiness is not None and not MIN_BURSTINESS <= burstiness < math.inf:
        raise SettingError(f"burstiness is {burstiness}: give {MIN_BURSTINESS:g} or more, or None")
    return burstiness


def offered(changes: Iterable[LoadChange], times: Sequence[float]) -> list[float]:
    """The rate wanted at each of `times` (rising), in requests per second; 0 outside the load."""

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

    if change.what == "start" and change.load is not None:
        return RateCurve(LoadSpec(**change.load).arrivals.pieces(), change.time_s)  # type: ignore[union-attr]
    if change.what == "rate" and change.value is not None:
        curve.set_rate(change.value)
    elif change.what in ("pause", "resume"):
        curve.paused = change.what == "pause"
    elif change.what == "end":
        return RateCurve(0.0, change.time_s)
    return curve


def schedule(load: LoadSpec, start_s: float) -> LiveSchedule:
    """The arrivals of `load`, the same for every worker."""
    import numpy as np

    arrivals: Any = load.arrivals
    return LiveSchedule(
        arrivals.pieces(),
        np.random.default_rng([load.seed, 0]),
        burstiness=arrivals.burstiness,
        start_s=start_s,
    )


def steer(arrivals: LiveSchedule, change: LoadChange) -> None:
    """Do to `arrivals` what `change` says, from its time on."""
    if change.what == "rate" and change.value is not None:
        arrivals.set_rate(change.value, change.time_s)
    elif change.what == "burstiness":
        arrivals.set_burstiness(change.value, change.time_s)
    elif change.what == "pause":
        arrivals.pause(change.time_s)
    elif change.what == "resume":
        arrivals.resume(change.time_s)
