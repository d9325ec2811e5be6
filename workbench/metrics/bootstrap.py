"""What repeats of a run say together: bootstrap intervals, and ratios of paired runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from workbench.errors import SettingError

if TYPE_CHECKING:
    from workbench.metrics.summary import Summary


class Interval(NamedTuple):
    """An estimate over repeats, with its confidence interval."""

    estimate: float
    low: float
    high: float
    repeats: int


def repeat_intervals(
    summaries: Sequence[Summary], *, rng: np.random.Generator, confidence: float = 0.95
) -> dict[str, Interval]:
    """For every figure that all repeats have: its mean over the repeats and a bootstrap interval.

    The unit that is resampled is the repeat, as requests of one run are not independent. Raises
    SettingError for fewer than 3 repeats.
    """
    rows = [summary.model_dump(exclude_none=True) for summary in summaries]
    names = [n for n, v in rows[0].items() if isinstance(v, int | float)] if rows else ["repeats"]
    shared = [
        n for n in names if all(n in row for row in rows) and not isinstance(rows[0][n], bool)
    ]
    return {n: bootstrap([row[n] for row in rows], rng=rng, confidence=confidence) for n in shared}


def paired_ratios(
    first: Sequence[Summary],
    second: Sequence[Summary],
    name: str,
    *,
    rng: np.random.Generator,
    confidence: float = 0.95,
) -> Interval:
    """`second` over `first` of figure `name`, run by run; the mean is geometric."""
    pairs = [(a.figure(name), b.figure(name)) for a, b in zip(first, second, strict=True)]
    ratios = [b / a for a, b in pairs if a and b]
    if len(ratios) < len(pairs):
        raise SettingError(f"{name} is absent or zero in one of the runs: it has no ratio")
    logs = bootstrap(np.log(ratios).tolist(), rng=rng, confidence=confidence)
    mean, low, high = np.exp(logs[:3]).tolist()
    return Interval(mean, low, high, logs.repeats)


def bootstrap(
    values: Sequence[float],
    *,
    rng: np.random.Generator,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> Interval:
    """The mean of `values` and its percentile bootstrap interval, widened for few values.

    The plain interval is too narrow for n values, as if their spread were known: its tails are
    taken at Phi(-sqrt(n / (n - 1)) t) with Student's t of n - 1 degrees instead (Hesterberg, "What
    Teachers Should Know About the Bootstrap", 2015, the expanded percentile interval). For 3
    values that is their range. Of nominal 95 % intervals for a normal mean, 87 % of those from
    4 values and 93 % of those from 8 cover it (simulated): more repeats make a surer interval.
    """
    from scipy.special import ndtr, stdtrit  # norm.cdf and t.ppf, without scipy.stats' slow import

    n = len(values)
    if n < 3:
        raise SettingError(f"repeats is {n}: an interval needs at least 3")
    data = np.asarray(values, np.float64)
    means = data[rng.integers(0, n, (resamples, n))].mean(axis=1)
    tail = ndtr((n / (n - 1)) ** 0.5 * stdtrit(n - 1, (1 - confidence) / 2))
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(data.mean()), float(low), float(high), n)
