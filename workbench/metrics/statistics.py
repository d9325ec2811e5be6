"""The statistics of a latency: mean, standard deviation and percentiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workbench.metrics.metric import STATISTICS

if TYPE_CHECKING:
    from workbench.metrics.columns import Floats

_BLOCK = 1_000_000


def statistics(values: Floats, *, reorder: bool = False) -> dict[str, float | None]:
    """Return `STATISTICS` of `values` without its NaNs, None where there are no values.

    The standard deviation is that of the population. Percentiles are interpolated linearly.

    Args:
        values: Any unit; the statistics have the same.
        reorder: Whether `values` may be reordered, which saves a copy. It then must have no NaN.
    """
    if not reorder:
        values = values[~np.isnan(values)]
    if not len(values):
        return dict.fromkeys(STATISTICS)
    mean = float(values.mean())
    # In blocks, so that the deviations never need as much memory as the values.
    blocks = np.array_split(values, len(values) // _BLOCK + 1)
    variance = sum(float(np.square(block - mean).sum()) for block in blocks) / len(values)
    ranks = np.percentile(values, [50, 90, 95, 99], overwrite_input=True).tolist()
    return dict(zip(STATISTICS, [mean, ranks[0], variance**0.5, *ranks], strict=True))
