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
from collections.abc import Iterable, Iterator
from itertools import count as integers
from itertools import islice, takewhile
from typing import TYPE_CHECKING

from workbench.errors import SettingError
from workbench.workload.arrivals import (
    Arrivals,
    ClosedLoop,
    RateSegment,
    TraceReplay,
)

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
    """Send times in seconds since the start, never decreasing, drawn one by one from `rng`.

    They are those before `duration_s`, and at most `count`. Without either, a ramp, steps,
    stages and a trace end by themselves; with one, all but a trace go on at their last rate (and
    end early if that is 0). The same seed gives the same offsets, and a longer schedule starts
    with those of a shorter one. `trace` has the offsets of a `TraceReplay`.

    Raises SettingError for a bound that is none, for endless arrivals without a bound, for a
    closed loop, and for a `TraceReplay` whose trace is not given.
    """
    _check_bounds(duration_s, count)
    if isinstance(spec, ClosedLoop):
        raise SettingError("kind is 'closed': a closed loop sends when a request ends, not on time")
    if isinstance(spec, TraceReplay):
        if trace is None:
            raise SettingError(
                f"trace is missing: read {spec.path} with workbench.workload.traces.replay"
            )
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
        at += unit_gap(rng, burstiness)
        yield at


def unit_gap(rng: np.random.Generator, burstiness: float | None) -> float:
    """The next gap on the line of unit rate."""
    return 1.0 if burstiness is None else float(rng.standard_gamma(burstiness)) / burstiness


def _rescaled(points: Iterable[float], pieces: tuple[RateSegment, ...]) -> Iterator[float]:
    """The times at which the integral of the rate reaches `points`; the last rate holds on."""
    last = pieces[-1].to_rate
    rest = iter([*pieces, RateSegment(math.inf, last, last)] if last else pieces)
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
