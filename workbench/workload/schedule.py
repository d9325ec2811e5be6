"""Seeded schedules of send times. Pure: no clock, no file, no sleep.

All open-loop arrivals are generated alike. Points on a line of unit rate, whose gaps come from the
specification, are mapped to seconds by the inverse of the integrated rate (time rescaling; Daley
and Vere-Jones, An Introduction to the Theory of Point Processes, section 7.4). The expected number
of requests follows the rate exactly while it changes, and the burstiness stays the same.

Burstiness is the shape b of the gamma distribution of the gaps, as in `vllm bench serve`: their
coefficient of variation is 1/sqrt(b), 1 is Poisson, below 1 is bursty. Unlike there, the send times
are not stretched afterwards to meet the mean rate, so the rate varies between seeds.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice, takewhile
from typing import TYPE_CHECKING

from workbench.errors import SettingError
from workbench.records import LoadChange
from workbench.workload.arrivals import Arrivals, OpenArrivals, TraceReplay
from workbench.workload.point_process import GammaGaps, Gaps, RateSegment, gaps_of, steady
from workbench.workload.rate_curve import RateCurve, check_burstiness

if TYPE_CHECKING:
    import numpy as np


def offsets(
    spec: Arrivals,
    rng: np.random.Generator,
    *,
    duration_s: float | None = None,
    count: int | None = None,
    trace: Iterable[float] | None = None,
) -> Iterator[float]:
    """Yield send times in seconds since the start, in rising order, drawn one by one.

    Without a bound, a ramp, steps, stages and a trace end by themselves. With a bound, all but a
    trace continue at their last rate, and end early if that is 0. The same seed gives the same
    times, and a longer schedule starts with those of a shorter one.

    Args:
        spec: The arrivals.
        rng: The source of randomness.
        duration_s: Only times before this.
        count: Maximum number of times.
        trace: The times of a `TraceReplay`.

    Raises:
        SettingError: A bound is invalid, the arrivals have no end and no bound, they are a closed
            loop, or they are a `TraceReplay` without `trace`.
    """
    _check_bounds(duration_s, count)
    if isinstance(spec, OpenArrivals):
        segments = spec.segments()
        times = _rescale(_unit_points(rng, spec.gaps()), segments)
        own_end = sum(segment.duration_s for segment in segments)
        if duration_s is count is None and own_end == math.inf:
            raise SettingError(
                f"arrivals of kind {spec.kind!r} have no end: give duration_s or count"
            )
    elif isinstance(spec, TraceReplay):
        if trace is None:
            raise SettingError(
                f"trace is missing: read {spec.path} with workbench.workload.traces.replay_trace"
            )
        times, own_end = iter(trace), math.inf
    else:
        raise SettingError(
            f"arrivals of kind {spec.kind!r} have no send times: a closed loop sends when a "
            "request ends"
        )
    bounded = duration_s is not None or count is not None
    end = (math.inf if duration_s is None else duration_s) if bounded else own_end
    return islice(takewhile(lambda at: at < end, times), count)


def _check_bounds(duration_s: float | None, count: int | None) -> None:
    if duration_s is not None and not 0 < duration_s < math.inf:
        raise SettingError(f"duration_s must be a finite number above 0, got {duration_s}")
    if count is not None and count < 1:
        raise SettingError(f"count must be at least 1, got {count}")


def _unit_points(rng: np.random.Generator, gaps: Gaps) -> Iterator[float]:
    at = gaps.first(rng)
    while True:
        yield at
        at += gaps.next(rng)


def _rescale(points: Iterable[float], segments: tuple[RateSegment, ...]) -> Iterator[float]:
    """Yield when the integral of the rate reaches each of `points`; the last rate continues."""
    last_rate = segments[-1].to_rate
    following = iter([*segments, *steady(last_rate)] if last_rate else segments)
    segment, start_s, before, at = next(following), 0.0, 0.0, 0.0
    for point in points:
        while point - before >= segment.requests:
            start_s, before = start_s + segment.duration_s, before + segment.requests
            upcoming = next(following, None)
            if upcoming is None:
                return
            segment = upcoming
        # Rounding may swap two neighbours that differ in the last digit.
        at = max(at, start_s + segment.time_of(point - before))
        yield at


class LiveSchedule:
    """Arrivals whose rate and burstiness can be changed while they run.

    Pure: every call is given the time, in seconds on one clock. The caller waits until `due_s` or
    a change, whichever is first, then calls `next` until nothing more is due. A change acts at
    once: the rest of the pending gap is stretched or shortened to the new rate. At a rate of 0 and
    while paused, the gap and the plan wait. Without changes the times are those of `offsets`.
    """

    def __init__(
        self,
        plan: float | Iterable[RateSegment],
        rng: np.random.Generator,
        gaps: Gaps | None = None,
        *,
        start_s: float = 0.0,
    ) -> None:
        """Start at `start_s` with a rate or segments, and exponential gaps by default.

        Raises:
            SettingError: The rate is out of range.
        """
        self._rng = rng
        self.curve = RateCurve(plan, start_s)
        self.gaps = GammaGaps(1.0) if gaps is None else gaps
        self._remaining = self.gaps.first(rng)
        # Due before a change but not taken yet: the change must not move them.
        self._ready: deque[float] = deque()

    @classmethod
    def from_arrivals(cls, arrivals: OpenArrivals, seed: int, start_s: float) -> LiveSchedule:
        """Return the schedule of `arrivals`. It is the same in every process."""
        import numpy as np

        rng = np.random.default_rng([seed, 0])
        return cls(arrivals.segments(), rng, arrivals.gaps(), start_s=start_s)

    @property
    def rate(self) -> float:
        """Requests per second after the last request or change; 0 while paused."""
        return self.curve.rate_at(self.curve.at_s)

    @property
    def due_s(self) -> float | None:
        """When the next request is due; None while paused and after the end of the plan."""
        return self._ready[0] if self._ready else self.curve.time_of(self._remaining)

    def next(self, now_s: float) -> float | None:
        """Take the next request if it is due by `now_s`, and return its due time."""
        due_s = self.due_s
        if due_s is None or due_s > now_s:
            return None
        return self._ready.popleft() if self._ready else self._take(due_s)

    def apply(self, change: LoadChange) -> None:
        """Apply `change` from its time on, or from the last request or change if that is later.

        A new burstiness applies to the gaps after the pending one.

        Raises:
            SettingError: The value is out of range. The schedule continues as before.
        """
        gaps = self.gaps
        if change.what == "burstiness":
            gaps = gaps_of(check_burstiness(change.value))
        self._take_until(change.time_s)
        self._remaining = max(0.0, self._remaining - self.curve.apply(change))
        self.gaps = gaps

    def _take_until(self, at_s: float) -> None:
        while (due_s := self.curve.time_of(self._remaining)) is not None and due_s <= at_s:
            self._ready.append(self._take(due_s))

    def _take(self, due_s: float) -> float:
        self.curve.advance(due_s)
        self._remaining = self.gaps.next(self._rng)
        return due_s
