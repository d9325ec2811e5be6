"""A rate over time that can be changed while the load runs."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from workbench.errors import SettingError
from workbench.records import LoadChange
from workbench.workload.arrivals import MAX_RATE, MIN_BURSTINESS, OpenArrivals, parse_arrivals
from workbench.workload.point_process import RateSegment, steady


class RateCurve:
    """A rate over time: planned segments, until another rate replaces them. It can be paused.

    Times are seconds on one clock and never decrease. After the last segment the rate is 0 and the
    plan is over (`ends_s`). A rate that was set manually has no end.

    Attributes:
        at_s: The time of the latest change.
        paused: Whether nothing is sent for now.
    """

    def __init__(self, plan: float | Iterable[RateSegment], start_s: float = 0.0) -> None:
        """Start at `start_s` with a constant rate or with segments.

        Raises:
            SettingError: The rate is out of range.
        """
        self.at_s = start_s
        self.paused = False
        if isinstance(plan, int | float):
            self._hold(check_rate(plan))
        else:
            self._segments, self._ends = deque(plan), True

    @property
    def ends_s(self) -> float | None:
        """When the plan is over; None while paused and after a rate was set manually."""
        if not self.follows_plan:
            return None
        end_s = self.at_s + sum(segment.duration_s for segment in self._segments)
        return end_s if end_s < math.inf else None

    @property
    def follows_plan(self) -> bool:
        """Whether the plan decides the rate and the end, and not a person."""
        return self._ends and not self.paused

    def boundaries(self) -> Iterator[float]:
        """Yield the times after `at_s` at which a segment ends; none while paused."""
        for _, end_s, _ in self._upcoming():
            yield end_s

    def rate_at(self, at_s: float) -> float:
        """Return the requests per second at a time not before `self.at_s`; 0 while paused."""
        for start_s, end_s, segment in self._upcoming():
            if at_s < end_s:
                return segment.rate_at(max(0.0, at_s - start_s))
        return 0.0

    def time_of(self, requests: float) -> float | None:
        """Return when the integral of the rate from `self.at_s` reaches `requests`, else None."""
        for start_s, _, segment in self._upcoming():
            if requests < segment.requests:
                return start_s + segment.time_of(requests)
            requests -= segment.requests
        return None

    def advance(self, at_s: float) -> float:
        """Move to `at_s` and return the integral of the rate until then."""
        requests = 0.0
        while self._segments and not self.paused and self.at_s < at_s:
            segment = self._segments.popleft()
            step_s = min(at_s - self.at_s, segment.duration_s)
            before, after = segment.split(step_s)
            requests, self.at_s = requests + before.requests, self.at_s + step_s
            if after.duration_s > 0:
                self._segments.appendleft(after)
        self.at_s = max(self.at_s, at_s)
        return requests

    def apply(self, change: LoadChange) -> float:
        """Move to the time of `change`, apply it, and return the integral of the rate until then.

        A `rate` replaces the plan and ends a pause. After `resume` the plan continues where it
        was paused. A change of anything but the rate has no effect on the curve.

        Raises:
            SettingError: The rate is out of range. The curve is unchanged.
        """
        rate = check_rate(change.value) if change.what == "rate" and change.value is not None else 0
        requests = self.advance(change.time_s)
        if change.what == "start" and change.load is not None:
            self._follow(change)
        elif (change.what == "rate" and change.value is not None) or change.what == "end":
            self._hold(rate)
        elif change.what in ("pause", "resume"):
            self.paused = change.what == "pause"
        return requests

    def _upcoming(self) -> Iterator[tuple[float, float, RateSegment]]:
        """Yield the start, the end and the segment of what is left of the plan."""
        start_s = self.at_s
        for segment in () if self.paused else self._segments:
            end_s = start_s + segment.duration_s
            yield start_s, end_s, segment
            start_s = end_s

    def _hold(self, rate: float) -> None:
        self._segments = deque(steady(rate) if rate else ())
        self._ends, self.paused = False, False

    def _follow(self, start: LoadChange) -> None:
        assert start.load is not None
        arrivals = parse_arrivals(start.load["arrivals"])
        assert isinstance(arrivals, OpenArrivals)
        self._segments, self._ends, self.paused = deque(arrivals.segments()), True, False


def check_rate(rate: float) -> float:
    """Return `rate`.

    Raises:
        SettingError: It is out of range.
    """
    if not 0 <= rate <= MAX_RATE:
        raise SettingError(
            f"rate must be between 0 (a pause) and {MAX_RATE:g} requests/s, got {rate}"
        )
    return rate


def check_burstiness(burstiness: float | None) -> float | None:
    """Return `burstiness`.

    Raises:
        SettingError: It is out of range.
    """
    if burstiness is not None and not MIN_BURSTINESS <= burstiness < math.inf:
        raise SettingError(
            f"burstiness must be at least {MIN_BURSTINESS:g}, or None for even gaps, "
            f"got {burstiness}"
        )
    return burstiness


def offered_rates(changes: Iterable[LoadChange], times: Sequence[float]) -> list[float]:
    """Return the requested rate at each of `times`, in requests per second; 0 outside the load.

    Args:
        changes: The changes of the load, in order.
        times: Seconds on the run's clock, in rising order.
    """
    pending, curve = deque(changes), RateCurve(0.0, -math.inf)
    rates = []
    for at_s in times:
        while pending and pending[0].time_s <= at_s:
            curve.apply(pending.popleft())
        rates.append(curve.rate_at(at_s))
    return rates


def change_times(changes: Iterable[LoadChange]) -> list[float]:
    """Return when the load changed: at the boundaries of its plan and manually, in order."""
    curve, start = RateCurve(0.0, -math.inf), list[float]()
    times: list[float] = []
    for change in changes:
        times += [at_s for at_s in (*start, *curve.boundaries()) if at_s <= change.time_s]
        start = [change.time_s] if change.what == "start" else []
        if change.what in ("rate", "pause", "resume"):
            times.append(change.time_s)
        curve.apply(change)
    return times
