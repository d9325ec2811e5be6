"""Throughput per GPU against speed per user, for several loads or stored runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from workbench.errors import RunError, SettingError
from workbench.metrics.summary import Summary
from workbench.runs.run import Run

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

COLUMNS = ("label", "group", "concurrency", "tokens_per_user", "tokens_per_gpu", "client_limited")


def frontier_points(
    sources: Sequence[Run | Summary],
    *,
    gpus: int | Sequence[int] | None = None,
    groups: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Return a point per run: its tokens/s per GPU and its tokens/s per user.

    Tokens/s per GPU is the output throughput divided by the number of GPUs. Tokens/s per user is
    the reciprocal of the median TPOT: the speed at which one answer appears after its first token.
    The concurrency is the mean number of requests in progress, by Little's law: throughput times
    mean E2EL.

    Args:
        sources: Finished runs, or the summaries of loads, such as the probes of a search.
        gpus: Number of GPUs behind the endpoint, one for all sources or one for each; default: the
            number of GPUs in the run's telemetry, else 1, which stands for the whole endpoint.
        groups: The curve that each source belongs to, such as a configuration; default: one curve.

    Returns:
        The columns label (the run's id, or the position), group, concurrency, tokens_per_user and
        tokens_per_gpu (tokens/s), client_limited, and efficient (no point of its group is better in
        both). `attrs["per"]` is "GPU" or "endpoint".

    Raises:
        RunError: A run is not finished.
        SettingError: A number of GPUs or of groups does not fit.
    """
    import pandas as pd

    names = ["all"] * len(sources) if groups is None else list(groups)
    counts = [gpus] * len(sources) if gpus is None or isinstance(gpus, int) else list(gpus)
    for name, values in (("gpus", counts), ("groups", names)):
        if len(values) != len(sources):
            raise SettingError(
                f"{name} must have a value for each of the {len(sources)} sources, got "
                f"{len(values)}"
            )
    counted = [_gpus(source, count) for source, count in zip(sources, counts, strict=True)]
    rows = [
        _row(str(number), source, name, count or 1)
        for number, (source, name, count) in enumerate(zip(sources, names, counted, strict=True))
    ]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    frame["efficient"] = False
    for _, part in frame.groupby("group"):
        best = efficient(part.tokens_per_user.to_numpy(float), part.tokens_per_gpu.to_numpy(float))
        frame.loc[part.index, "efficient"] = best
    frame.attrs["per"] = "GPU" if all(counted) else "endpoint"
    return frame


def efficient(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return for each point whether no other is at least as good in both and better in one."""
    known = ~(np.isnan(x) | np.isnan(y))
    at_least = (x[None, :] >= x[:, None]) & (y[None, :] >= y[:, None])
    better = (x[None, :] > x[:, None]) | (y[None, :] > y[:, None])
    undominated: NDArray[np.bool_] = known & ~np.any(at_least & better, axis=1)
    return undominated


def _gpus(source: Run | Summary, given: int | None) -> int | None:
    """Return the number of GPUs, None if unknown."""
    if given is not None:
        if given < 1:
            raise SettingError(f"gpus must be at least 1, got {given}")
        return given
    if isinstance(source, Summary):
        return None
    cards = source.samples_frame("gpu")
    return len(cards[["node", "gpu"]].drop_duplicates()) or None


def _row(number: str, source: Run | Summary, group: str, gpus: int) -> list[object]:
    summary = source if isinstance(source, Summary) else source.summary()
    label = number if isinstance(source, Summary) else source.run_id
    if summary is None:
        raise RunError(f"run {label} has no summary: it was not finished; leave it out")
    tpot_ms, rate = summary.p50_tpot_ms, summary.request_throughput
    e2el_ms, throughput = summary.mean_e2el_ms, summary.output_throughput
    return [
        label,
        group,
        rate * e2el_ms / 1e3 if rate is not None and e2el_ms is not None else np.nan,
        1e3 / tpot_ms if tpot_ms else np.nan,
        throughput / gpus if throughput is not None else np.nan,
        summary.client_health.client_limited is True,
    ]
