"""One figure of paired runs: its ratio, its interval, and whether the candidate is better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from workbench.errors import SettingError
from workbench.metrics.bootstrap import MIN_REPEATS, Interval, bootstrap, paired_ratios
from workbench.metrics.registry import find_metric

if TYPE_CHECKING:
    import numpy as np

    from workbench.metrics.summary import Summary

    Pairs = list[tuple[float, float]]

_NEED_AN_SLO = ("request_goodput", "slo_attainment")


class ComparedFigure(NamedTuple):
    """A row of `compare_runs`. A mean is None if a run has no value; a missing ratio is NaN."""

    unit: str
    baseline: float | None
    candidate: float | None
    ratio: float
    low: float
    high: float
    repeats: int
    verdict: str


def compare_figure(
    name: str,
    baseline: Sequence[Summary],
    candidate: Sequence[Summary],
    *,
    rng: np.random.Generator,
    confidence: float,
) -> ComparedFigure:
    """Compare figure `name` of the runs of both sides, pair by pair.

    Raises:
        UnknownMetricError: If there is no such figure.
        SettingError: If neither higher nor lower values of the figure are better.
    """
    metric = find_metric(name)
    if metric.direction is None:
        raise SettingError(
            f"figures contains {name!r}, for which neither higher nor lower is better: choose a "
            "throughput, goodput, attainment, count or latency"
        )
    values = [[summary.figure(name) for summary in side] for side in (baseline, candidate)]
    pairs = [(a, b) for a, b in zip(*values, strict=True) if a is not None and b is not None]
    n, means = len(baseline), (_mean(values[0]), _mean(values[1]))
    bounds = {str(summary.slo and summary.slo.bounds()) for summary in (*baseline, *candidate)}
    if len(pairs) < n:
        return _not_compared(metric.unit, means, n, "absent in a run")
    if name in _NEED_AN_SLO and len(bounds) > 1:
        return _not_compared(metric.unit, means, n, "the SLOs differ")
    ratio = _ratio(name, baseline, candidate, pairs, rng, confidence)
    verdict = _verdict(pairs, ratio, metric.direction == "higher", rng, confidence)
    return ComparedFigure(metric.unit, *means, ratio.estimate, ratio.low, ratio.high, n, verdict)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _not_compared(
    unit: str, means: tuple[float | None, float | None], repeats: int, reason: str
) -> ComparedFigure:
    nan = math.nan
    return ComparedFigure(unit, *means, nan, nan, nan, repeats, f"not compared: {reason}")


def _ratio(
    name: str,
    baseline: Sequence[Summary],
    candidate: Sequence[Summary],
    pairs: Pairs,
    rng: np.random.Generator,
    confidence: float,
) -> Interval:
    """Return the ratio; NaN if a value is zero. Its bounds are NaN with fewer than 3 pairs."""
    n, nan = len(pairs), math.nan
    if not all(a and b for a, b in pairs):
        return Interval(nan, nan, nan, n)
    if n < MIN_REPEATS:
        return Interval(math.exp(sum(math.log(b / a) for a, b in pairs) / n), nan, nan, n)
    return paired_ratios(baseline, candidate, name, rng=rng, confidence=confidence)


def _verdict(
    pairs: Pairs,
    ratio: Interval,
    higher_is_better: bool,
    rng: np.random.Generator,
    confidence: float,
) -> str:
    if len(pairs) < MIN_REPEATS:
        return f"too few repeats: {len(pairs)} of {MIN_REPEATS}"
    low, high, same = ratio.low, ratio.high, 1.0
    if math.isnan(low):
        differences = bootstrap([b - a for a, b in pairs], rng=rng, confidence=confidence)
        low, high, same = differences.low, differences.high, 0.0
    if low <= same <= high:
        return "no difference shown"
    return "better" if (low > same) == higher_is_better else "worse"
