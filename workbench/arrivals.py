"""When requests are sent: seeded schedules of send offsets. Pure: no clock, no file, no sleep.

A schedule is a spec, one of the kinds in `Arrivals`, and `offsets` turns it into seconds since its
start. Every open-loop kind is made alike. Points on a line of unit rate, evenly spaced or with
gaps from a gamma law of mean 1, are carried to seconds by the inverse of the integrated rate (the
time-rescaling theorem; Daley and Vere-Jones, An Introduction to the Theory of Point Processes,
section 7.4). So the expected number of requests follows the rate exactly while it changes, and the
burstiness stays what it is.

Burstiness is the shape b of the gamma law, as in `vllm bench serve`: the gaps have a coefficient of
variation of 1/sqrt(b), 1 is Poisson, below 1 is bursty. Unlike there, the offsets are not stretched
afterwards to meet the mean rate, so two runs of different seeds differ in it as chance has it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import count as integers
from itertools import islice, takewhile
from typing import TYPE_CHECKING

from workbench.arrival_specs import (
    MAX_RATE,
    MIN_BURSTINESS,
    Arrivals,
    Closed,
    Constant,
    Gamma,
    Piece,
    Poisson,
    Ramp,
    Replay,
    Step,
    Steps,
    parse,
)
from workbench.errors import SettingError

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "Arrivals",
    "Closed",
    "Constant",
    "Gamma",
    "LiveSchedule",
    "Poisson",
    "Ramp",
    "Replay",
    "Step",
    "Steps",
    "offsets",
    "parse",
]


def offsets(
    spec: Arrivals,
    rng: np.random.Generator,
    *,
    duration_s: float | None = None,
    count: int | None = None,
    trace: Iterable[float] | None = None,
) -> Iterator[float]:
    """Send times in seconds since the start, never decreasing, drawn one by one from `rng`.

    They are those before `duration_s`, and at most `count`. Without either, a ramp, steps and a
    trace end by themselves; with one, a ramp and steps go on at their last rate (and end early if
    that is 0). The same seed gives the same offsets, and a longer schedule starts with those of a
    shorter one. `trace` has the offsets of a `Replay`.

    Raises SettingError for a bound that is none, for endless arrivals without a bound, for a
    closed loop, and for a `Replay` whose trace is not given.
    """
    _check_bounds(duration_s, count)
    if isinstance(spec, Closed):
        raise SettingError("kind is 'closed': a closed loop sends when a request ends, not on time")
    if isinstance(spec, Replay):
        if trace is None:
            raise SettingError(f"trace is missing: read {spec.path} with workbench.traces.replay")
        times, own_end = iter(trace), math.inf
    else:
        pieces = spec.pieces()
        times = _rescaled(_unit_points(rng, spec.burstiness), pieces)
        own_end = sum(piece.duration_s for piece in pieces)
        if duration_s is count is None and own_end == math.inf:
            raise SettingError(f"kind is {spec.kind!r}, which has no end: give duration_s or count")
    bounded = duration_s is not None or count is not None
    end = (math.inf if duration_s is None else duration_s) if bounded else own_end
    return islice(takewhile(lambda at: at < end, times), count)


def _check_bounds(duration_s: float | None, count: int | None) -> None:
    if duration_s is not None and not 0 < duration_s < math.inf:
        raise SettingError(f"duration_s is {duration_s}: give a number of seconds above 0")
    if count is not None and count < 1:
        raise SettingError(f"count is {count}: give at least 1")


def _unit_points(rng: np.random.Generator, burstiness: float | None) -> Iterator[float]:
    if burstiness is None:
        yield from map(float, integers())
    at = 0.0
    while burstiness is not None:
        at += _unit_gap(rng, burstiness)
        yield at


def _unit_gap(rng: np.random.Generator, burstiness: float | None) -> float:
    return 1.0 if burstiness is None else float(rng.standard_gamma(burstiness)) / burstiness


def _rescaled(points: Iterable[float], pieces: tuple[Piece, ...]) -> Iterator[float]:
    """The times at which the integral of the rate reaches `points`; the last rate holds on."""
    last = pieces[-1].to_rate
    rest = iter([*pieces, Piece(math.inf, last, last)] if last else pieces)
    piece, start_s, before, at = next(rest), 0.0, 0.0, 0.0
    for point in points:
        while point - before >= piece.requests:
            start_s, before = start_s + piece.duration_s, before + piece.requests
            following = next(rest, None)
            if following is None:
                return
            piece = following
        # Rounding may turn two neighbours round by a last digit.
        at = max(at, start_s + piece.when(point - before))
        yield at


class LiveSchedule:
    """Arrivals whose rate and burstiness can be changed while they run.

    Pure: every call is told the time, in seconds on one clock. A driver waits until `due_s` or a
    change, whichever is first, then takes with `next` all that is due. A change acts at once: what
    is left of the pending gap is stretched or shortened to the new rate. A rate of 0 pauses, and
    the gap goes on where it was. Without changes the times are those of `offsets`.
    """

    def __init__(
        self,
        rate: float,
        rng: np.random.Generator,
        *,
        burstiness: float | None = 1.0,
        start_s: float = 0.0,
    ) -> None:
        """Raises SettingError for a rate or burstiness that is none."""
        self._rng = rng
        self._rate = _checked_rate(rate)
        self._burstiness = _checked_burstiness(burstiness)
        self._at_s = start_s
        self._left = 0.0 if burstiness is None else _unit_gap(rng, burstiness)
        # Due before a change, and not taken yet: the change must not move them.
        self._ready: deque[float] = deque()

    @property
    def rate(self) -> float:
        """Requests per second; 0 while paused."""
        return self._rate

    @property
    def burstiness(self) -> float | None:
        """The shape of the gamma law of the gaps; None for even ones."""
        return self._burstiness

    @property
    def due_s(self) -> float | None:
        """When the next request is due; None while paused."""
        return self._ready[0] if self._ready else self._pending_s()

    def next(self, now_s: float) -> float | None:
        """Take the next request if it is due by `now_s`: when it was due. None if none is."""
        due_s = self.due_s
        if due_s is None or due_s > now_s:
            return None
        return self._ready.popleft() if self._ready else self._take(due_s)

    def set_rate(self, rate: float, at_s: float) -> None:
        """Go on at `rate` from `at_s`, or from the last request taken or change made if later.

        Raises SettingError for a rate that is none; the old one then holds.
        """
        rate = _checked_rate(rate)
        self._advance(at_s)
        self._rate = rate

    def set_burstiness(self, burstiness: float | None, at_s: float) -> None:
        """Draw the gaps after the pending one from the new law. Otherwise as `set_rate`."""
        burstiness = _checked_burstiness(burstiness)
        self._advance(at_s)
        self._burstiness = burstiness

    def _pending_s(self) -> float | None:
        return self._at_s + self._left / self._rate if self._rate else None

    def _take(self, due_s: float) -> float:
        self._at_s, self._left = due_s, _unit_gap(self._rng, self._burstiness)
        return due_s

    def _advance(self, at_s: float) -> None:
        while (due_s := self._pending_s()) is not None and due_s <= at_s:
            self._ready.append(self._take(due_s))
        if at_s > self._at_s:
            self._left = max(0.0, self._left - (at_s - self._at_s) * self._rate)
            self._at_s = at_s


def _checked_rate(rate: float) -> float:
    if not 0 <= rate <= MAX_RATE:
        raise SettingError(f"rate is {rate}: give 0 (a pause) to {MAX_RATE:g} requests per second")
    return rate


def _checked_burstiness(burstiness: float | None) -> float | None:
    if burstiness is not None and not MIN_BURSTINESS <= burstiness < math.inf:
        raise SettingError(f"burstiness is {burstiness}: give {MIN_BURSTINESS:g} or more, or None")
    return burstiness
