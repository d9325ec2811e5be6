"""The search for the highest load at which an SLO still holds, and the knee of a curve.

Pure but for awaiting the caller's probe: nothing here sends a request or reads a clock.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from workbench.errors import SettingError
from workbench.experiments.search_result import Phase, ProbeResult, SearchResult
from workbench.metrics.columns import Columns

if TYPE_CHECKING:
    from workbench.metrics.slo import SLO
    from workbench.metrics.summary import Summary
    from workbench.records import RequestRecord

RISE = 1.5
Probe = Callable[[float], Awaitable["Summary"]]
"""Runs the load at a rate (or a concurrency) and summarizes it against an SLO."""


async def highest_load(
    probe: Probe,
    *,
    low: float,
    high: float,
    start: float | None = None,
    tolerance: float = 0.05,
    confirmations: int = 2,
    integer: bool = False,
    unit: str | None = None,
    max_probes: int = 30,
    on_probe: Callable[[ProbeResult], object] | None = None,
) -> SearchResult:
    """Find the highest load between `low` and `high` at which `probe`'s SLO is met.

    Doubles from `start` (by default `low`) until the SLO is missed, or halves if it is missed
    there; bisects geometrically until met and missed are within `tolerance` of each other
    (relative), then runs the best load `confirmations` more times (fewer once it cannot hold): it
    holds if most of all its runs met the SLO. Else the next lower load that was met, or one step
    of `tolerance` down if that is nearer, is confirmed in its place; where no lower one was met
    yet, one is found by halving. With `integer`, loads are whole numbers (a concurrency); `unit` is
    what they count, as "users". At most `max_probes` run, of which the last `confirmations` are
    kept for confirming. A probe that the client limited is run once more and then counts for
    nothing: what it saw was the client.

    `on_probe` is called after each probe: what the probe raises is raised here, and the caller has
    what came before. Raises SettingError for a bad setting or a summary that judged no SLO.
    """
    start = low if start is None else start
    _check(low, start, high, tolerance, integer)
    if not 0 <= confirmations < max_probes:
        told = f"confirmations is {confirmations} and max_probes is {max_probes}"
        raise SettingError(f"{told}: give 0 or more, and fewer than max_probes")
    search = _Search(probe, tolerance, confirmations, integer, max_probes, on_probe)
    low, start, high = (int(n) if integer else float(n) for n in (low, start, high))
    met, missed = await search.bracket(low, start, high)
    best = met if met is None or missed is None else await search.bisect(met, missed)
    met = best
    while best is not None and not await search.holds(best):
        lower = search.below(best)
        if lower is None:  # none was tried, as where the search began too high
            lower, above = await search.halve(low, best)
            lower = lower and await search.bisect(lower, above)
        best = lower
    return SearchResult(
        highest=best,
        probes=tuple(search.probes),
        bounded=missed is not None or best != met,
        confirmed=sum(p.phase == "confirm" and p.met for p in search.at(best)),
        unit=unit or ("concurrent requests" if integer else "requests/s"),
    )


def saturated(records_so_far: Iterable[RequestRecord], slo: SLO, *, requests_left: int) -> bool:
    """Whether `slo` is missed however well the requests go that have not ended yet.

    True when (good + left) / (judged + left) < target, with good and judged as in
    `slo_attainment`: errors, timeouts and sheds are judged and never good. A load that is cut then
    misses its SLO too, as cut requests can only be judged bad. Leave warm-up out of both.
    """
    if requests_left < 0:
        raise SettingError(f"requests_left is {requests_left}: give 0 or more")
    good, judged = Columns.read(records_so_far).good(slo)
    most = judged + requests_left
    return most > 0 and ((good or 0) + requests_left) / most < slo.target


def knee(x: Sequence[float], y: Sequence[float]) -> int | None:
    """The index of the knee of throughput `x` against latency `y`, in order of the offered load.

    The point farthest below the chord from the first to the last, both axes scaled to [0, 1]:
    beyond it, latency rises faster than throughput. After Satopaa, Albrecht, Irwin and Raghavan,
    "Finding a 'Kneedle' in a Haystack" (ICDCS workshops, 2011), without its smoothing. Points that
    are not finite are passed over. None with fewer than 3 points, where none is below the chord by
    more than 1 % of the scaled axes, or where the highest latency is not half above the lowest: on
    a flat curve, noise would make a knee.
    """
    if len(x) != len(y):
        raise SettingError(f"x has {len(x)} points and y has {len(y)}: give as many of each")
    points = np.array([x, y], np.float64)
    kept = np.flatnonzero(np.isfinite(points).all(axis=0))
    if len(kept) < 3:
        return None
    if points[1, kept].max() < RISE * points[1, kept].min():
        return None
    points = points[:, kept] - points[:, kept].min(axis=1, keepdims=True)
    spread = points.max(axis=1, keepdims=True)
    if not spread.all():
        return None
    across, up = (points - points[:, :1]) / spread
    if not (length := math.hypot(across[-1], up[-1])):
        return None
    below = (across * up[-1] - up * across[-1]) / length
    return int(kept[below.argmax()]) if below.max() > 0.01 else None


@dataclass
class _Search:
    """The probes so far, and how the next load is chosen from them."""

    probe: Probe
    tolerance: float
    confirmations: int
    integer: bool
    max_probes: int
    on_probe: Callable[[ProbeResult], object] | None
    probes: list[ProbeResult] = field(default_factory=list)

    async def run(self, load: float, phase: Phase) -> bool:
        found = await self.measure(load, phase, again=False)
        if found.replaced:
            found = await self.measure(load, phase, again=True)
        return found.met

    async def measure(self, load: float, phase: Phase, again: bool) -> ProbeResult:
        summary = await self.probe(load)
        if (met := summary.slo_met) is None:
            raise SettingError(
                f"the probe's summary at {load:g} has no slo: give the probe one"
                if summary.slo is None
                else f"the probe at {load:g} judged no request after its warm-up: make it longer"
            )
        kept = 0 if phase == "confirm" else self.confirmations
        may_repeat = not again and len(self.probes) + 1 < self.max_probes - kept
        limited = bool(summary.client_health.client_limited)
        self.probes.append(ProbeResult(load, phase, met, summary, limited and may_repeat))
        if self.on_probe is not None:
            self.on_probe(self.probes[-1])
        return self.probes[-1]

    async def bracket(
        self, low: float, start: float, high: float
    ) -> tuple[float | None, float | None]:
        """A load that met the SLO and the next one that missed it, None where none did."""
        met, load = None, start
        while await self.run(load, "bracket"):
            met = load
            if load >= high or not self.may_look():
                return met, None
            load = min(2 * load, high)
        return (met, load) if met is not None else await self.halve(low, load)

    async def halve(self, low: float, missed: float) -> tuple[float | None, float]:
        """A load below `missed` that met the SLO, None if not even `low` did; and the last miss."""
        while missed > low and self.may_look():
            load = max(low, missed // 2 if self.integer else missed / 2)
            if await self.run(load, "bracket"):
                return load, missed
            missed = load
        return None, missed

    async def bisect(self, met: float, missed: float) -> float:
        """The highest load that met the SLO, within tolerance of one that missed it."""
        while self.may_look() and missed > met * (1 + self.tolerance):
            middle = math.sqrt(met * missed)
            if self.integer and (middle := round(middle)) in (met, missed):
                break
            held = await self.run(middle, "bisect")
            met, missed = (middle, missed) if held else (met, middle)
        return met

    async def holds(self, load: float) -> bool:
        """Whether most runs at `load` met the SLO, after as many more as are needed and left."""
        total = 1 + self.confirmations
        runs = self.at(load)
        while len(self.probes) < self.max_probes and len(runs) < total:
            if 2 * sum(not p.met for p in runs) >= total:
                break
            await self.run(load, "confirm")
            runs = self.at(load)
        return 2 * sum(p.met for p in runs) > len(runs)

    def below(self, load: float) -> float | None:
        """The next load to try when `load` did not hold, None below the lowest."""
        known = (p.rate for p in self.probes if p.met and not p.replaced and p.rate < load)
        met = max(known, default=None)
        if met is None:
            return None
        step = load / (1 + self.tolerance)
        return max(met, min(math.ceil(step), load - 1) if self.integer else step)

    def at(self, load: float | None) -> list[ProbeResult]:
        return [p for p in self.probes if p.rate == load and not p.replaced]

    def may_look(self) -> bool:
        return len(self.probes) < self.max_probes - self.confirmations


def _check(low: float, start: float, high: float, tolerance: float, integer: bool) -> None:
    for name, value in (("low", low), ("start", start), ("high", high)):
        if not 0 < value < math.inf:
            raise SettingError(f"{name} is {value!r}: give a load above 0")
        if integer and value != int(value):
            raise SettingError(f"{name} is {value!r}: with integer=True give a whole number")
    if low >= high:
        raise SettingError(f"low is {low!r}: give one below high = {high!r}")
    if not low <= start <= high:
        raise SettingError(f"start is {start!r}: give one from low = {low!r} to high = {high!r}")
    if not 0 < tolerance < 1:
        raise SettingError(f"tolerance is {tolerance!r}: give a share between 0 and 1, as 0.05")
