"""The search for the highest load at which an SLO still holds, and the knee of a curve.

Pure except for awaiting the caller's probe: nothing here sends a request or reads a clock.
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

MIN_RISE = 1.5
Probe = Callable[[float], Awaitable["Summary"]]
"""Runs the load at a rate (or a concurrency) and summarizes it with an SLO."""


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
    """Find the highest load between `low` and `high` at which `probe` meets its SLO.

    The search doubles the load from `start` until the SLO is missed, or halves it if it is missed
    there. It bisects geometrically until the loads that met and missed the SLO are within
    `tolerance`. Then it repeats the best load: the load holds if most of its runs met the SLO. If
    not, the search confirms the next lower load that met the SLO, or one step of `tolerance` down
    if that is closer; if no lower load has met it yet, it finds one by halving. A probe that the
    client limited is repeated once and does not count.

    Args:
        probe: Runs a load and returns its summary. What it raises is raised here.
        low: Lowest load.
        high: Highest load.
        start: First load, `low` by default.
        tolerance: Relative distance between the loads at which bisecting stops.
        confirmations: Number of repeats of the best load (less often once it cannot hold).
        integer: Whether loads are whole numbers, such as a concurrency.
        unit: The unit of the loads, such as "users".
        max_probes: Limit on all probes. The last `confirmations` are reserved for confirming.
        on_probe: Called after each probe.

    Raises:
        SettingError: If a setting is invalid, or a summary has no SLO attainment.
    """
    start = low if start is None else start
    _check(low, start, high, tolerance, integer)
    if not 0 <= confirmations < max_probes:
        raise SettingError(
            f"confirmations must be at least 0 and less than max_probes = {max_probes}, got "
            f"{confirmations}"
        )
    search = _Search(probe, tolerance, confirmations, integer, max_probes, on_probe)
    low, start, high = (int(n) if integer else float(n) for n in (low, start, high))
    met, missed = await search.bracket(low, start, high)
    best = met if met is None or missed is None else await search.bisect(met, missed)
    met = best
    while best is not None and not await search.holds(best):
        lower = search.below(best)
        if lower is None:  # nothing lower met it yet, because the search started too high
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


def slo_unreachable(
    records_so_far: Iterable[RequestRecord], slo: SLO, *, requests_left: int
) -> bool:
    """Return whether `slo` is missed even if all remaining requests are good.

    That is (good + left) / (judged + left) < target, with good and judged as in `SLO.count`. A
    load that is stopped then misses its SLO too, because stopped requests can only be judged bad.
    Exclude the warm-up from both arguments.
    """
    if requests_left < 0:
        raise SettingError(f"requests_left must be at least 0, got {requests_left}")
    good, judged = slo.count(Columns.read(records_so_far))
    at_most = judged + requests_left
    return at_most > 0 and (good + requests_left) / at_most < slo.target


def knee(x: Sequence[float], y: Sequence[float]) -> int | None:
    """Return the index of the knee of throughput `x` against latency `y`, by offered load.

    The knee is the point farthest below the chord from the first to the last point, with both axes
    scaled to [0, 1]: beyond it, latency rises faster than throughput. After Satopaa, Albrecht,
    Irwin and Raghavan, "Finding a 'Kneedle' in a Haystack" (ICDCS workshops, 2011), without its
    smoothing. Points that are not finite are ignored.

    Returns:
        None with fewer than 3 points, if no point is below the chord by more than 1 % of the
        scaled axes, or if the highest latency is less than half above the lowest: on a flat curve,
        noise would make a knee.
    """
    if len(x) != len(y):
        raise SettingError(f"x and y must have the same length, got {len(x)} and {len(y)}")
    points = np.array([x, y], np.float64)
    kept = np.flatnonzero(np.isfinite(points).all(axis=0))
    if len(kept) < 3:
        return None
    if points[1, kept].max() < MIN_RISE * points[1, kept].min():
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
    """The probes so far, and the choice of the next load."""

    probe: Probe
    tolerance: float
    confirmations: int
    integer: bool
    max_probes: int
    on_probe: Callable[[ProbeResult], object] | None
    probes: list[ProbeResult] = field(default_factory=list)

    async def run(self, load: float, phase: Phase) -> bool:
        """Probe `load`, again if the client limited the probe. Returns whether it met the SLO."""
        result = await self.measure(load, phase, repeated=False)
        if result.replaced:
            result = await self.measure(load, phase, repeated=True)
        return result.met

    async def measure(self, load: float, phase: Phase, repeated: bool) -> ProbeResult:
        """Probe `load` once."""
        summary = await self.probe(load)
        if (met := summary.slo_met) is None:
            raise SettingError(
                f"the probe's summary at load {load:g} has no slo: give the probe one"
                if summary.slo is None
                else f"the probe at load {load:g} judged no request after its warm-up: make it "
                "longer"
            )
        reserved = 0 if phase == "confirm" else self.confirmations
        may_repeat = not repeated and len(self.probes) + 1 < self.max_probes - reserved
        limited = bool(summary.client_health.client_limited)
        self.probes.append(ProbeResult(load, phase, met, summary, limited and may_repeat))
        if self.on_probe is not None:
            self.on_probe(self.probes[-1])
        return self.probes[-1]

    async def bracket(
        self, low: float, start: float, high: float
    ) -> tuple[float | None, float | None]:
        """Return a load that met the SLO and the next that missed it, None if there is none."""
        met, load = None, start
        while await self.run(load, "bracket"):
            met = load
            if load >= high or not self.may_probe():
                return met, None
            load = min(2 * load, high)
        return (met, load) if met is not None else await self.halve(low, load)

    async def halve(self, low: float, missed: float) -> tuple[float | None, float]:
        """Return a load below `missed` that met the SLO (None if not even `low`), and the miss."""
        while missed > low and self.may_probe():
            load = max(low, missed // 2 if self.integer else missed / 2)
            if await self.run(load, "bracket"):
                return load, missed
            missed = load
        return None, missed

    async def bisect(self, met: float, missed: float) -> float:
        """Return the highest load that met the SLO, within tolerance of one that missed it."""
        while self.may_probe() and missed > met * (1 + self.tolerance):
            middle = math.sqrt(met * missed)
            if self.integer and (middle := round(middle)) in (met, missed):
                break
            met_middle = await self.run(middle, "bisect")
            met, missed = (middle, missed) if met_middle else (met, middle)
        return met

    async def holds(self, load: float) -> bool:
        """Repeat `load` as often as needed and possible. Returns whether most runs met the SLO."""
        total = 1 + self.confirmations
        runs = self.at(load)
        while len(self.probes) < self.max_probes and len(runs) < total:
            if 2 * sum(not p.met for p in runs) >= total:
                break
            await self.run(load, "confirm")
            runs = self.at(load)
        return 2 * sum(p.met for p in runs) > len(runs)

    def below(self, load: float) -> float | None:
        """Return the next load to try if `load` did not hold, None if no lower one met the SLO."""
        known = (p.rate for p in self.probes if p.met and not p.replaced and p.rate < load)
        met = max(known, default=None)
        if met is None:
            return None
        step = load / (1 + self.tolerance)
        return max(met, min(math.ceil(step), load - 1) if self.integer else step)

    def at(self, load: float | None) -> list[ProbeResult]:
        """Return the probes at `load` that count."""
        return [p for p in self.probes if p.rate == load and not p.replaced]

    def may_probe(self) -> bool:
        """Whether there are probes left besides those reserved for confirming."""
        return len(self.probes) < self.max_probes - self.confirmations


def _check(low: float, start: float, high: float, tolerance: float, integer: bool) -> None:
    for name, value in (("low", low), ("start", start), ("high", high)):
        if not 0 < value < math.inf:
            raise SettingError(f"{name} must be above 0 and finite, got {value!r}")
        if integer and value != int(value):
            raise SettingError(f"{name} must be a whole number with integer=True, got {value!r}")
    if low >= high:
        raise SettingError(f"low must be below high = {high!r}, got {low!r}")
    if not low <= start <= high:
        raise SettingError(
            f"start must be between {low!r} (low) and {high!r} (high), got {start!r}"
        )
    if not 0 < tolerance < 1:
        raise SettingError(f"tolerance must be between 0 and 1, such as 0.05, got {tolerance!r}")
