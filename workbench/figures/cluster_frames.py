"""The data behind the timeline: a run's requests, samples and load changes as frames."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from workbench.cost.series import CostSeries, cost_rows
from workbench.figures.lanes import Lanes
from workbench.metrics.windows import request_windows
from workbench.records import LoadChange
from workbench.workload.rate_curve import offered_rates

if TYPE_CHECKING:
    import pandas as pd

    from workbench.metrics.slo import SLO
    from workbench.runs.run import Run

GAP_S = 3.5
"""Samples come once a second; if two are further apart, the line between them is broken."""
MAX_POINTS = 2000
"""The maximum number of points of a trace; longer runs are thinned."""

Vector: TypeAlias = NDArray[np.float64]
Curve: TypeAlias = tuple[Vector, Vector]
"""Times in seconds since the start of the run, and the values at these times."""


@dataclass(frozen=True)
class Frames:
    """The data of one run, or of its last minutes.

    Attributes:
        requests: A row per second, with `workbench.metrics.windows.WINDOW_COLUMNS` and `offered`,
            the planned rate in requests/s (NaN if the load was not a live one).
        changes: The changes of a live load.
        samples: Returns the samples of a kind (`workbench.records.SAMPLE_KINDS`) as a frame.
            Samples of deployments and replicas are those of the models' deployments only.
        cost: A row per second, in dollars (`workbench.cost.series.COST_COLUMNS`); empty without
            prices.
        lanes: What each replica did.
        slo: The bounds that the latency panel shows.
    """

    requests: pd.DataFrame
    changes: Sequence[LoadChange]
    samples: Callable[[str], pd.DataFrame]
    cost: pd.DataFrame
    lanes: Lanes = field(default_factory=Lanes)
    slo: SLO | None = None


@dataclass(frozen=True)
class RequestColumn:
    """A column of `Frames.requests`."""

    column: str

    def read(self, frames: Frames) -> Curve:
        """Return the column over time, thinned."""
        return _curve(frames.requests, self.column)


@dataclass(frozen=True)
class CostColumn:
    """A column of `Frames.cost`."""

    column: str

    def read(self, frames: Frames) -> Curve:
        """Return the column over time, thinned."""
        return _curve(frames.cost, self.column)


@dataclass(frozen=True)
class SampleColumn:
    """A field of a kind of samples, combined over all samples taken at the same time."""

    kind: str
    column: str
    combine: Literal["sum", "mean", "max"]

    def read(self, frames: Frames) -> Curve:
        """Return the combined field over time, thinned, with NaN in gaps."""
        return thinned(*self.curve(frames))

    def curve(self, frames: Frames) -> Curve:
        """Return the combined field at every time of a sample, with NaN in gaps."""
        samples = frames.samples(self.kind).reindex(columns=["time_s", self.column]).astype(float)
        times, index = np.unique(samples.time_s.to_numpy(), return_inverse=True)
        values = samples[self.column].to_numpy()
        combined = np.full(len(times), np.nan)
        if self.combine == "max":
            np.fmax.at(combined, index, values)
            return with_gaps(times, combined)
        known = ~np.isnan(values)
        count = np.bincount(index[known], minlength=len(times))
        total = np.bincount(index[known], values[known], minlength=len(times))
        # Where every value is missing, the result is missing too and not 0.
        divisor = count if self.combine == "mean" else np.ones(len(times))
        np.divide(total, divisor, out=combined, where=count > 0)
        return with_gaps(times, combined)


def frames_of(
    run: Run,
    deployments: Collection[str],
    *,
    cost: CostSeries | None = None,
    slo: SLO | None = None,
) -> Frames:
    """Read the frames of a whole run from its folder.

    Args:
        run: The run.
        deployments: The deployments of the models.
        cost: A new series that knows the prices.
        slo: The SLO whose bounds the figure shows.
    """
    changes = run.changes()

    @cache
    def samples(kind: str) -> pd.DataFrame:
        return of_deployments(run.samples_frame(kind), deployments)

    known_s = [*samples("deployment").time_s, *(change.time_s for change in changes)]
    requests = request_windows(run.records(), until_s=max(known_s, default=0.0))
    series = cost or CostSeries(None, None)
    return Frames(
        requests=with_offered(requests, changes),
        changes=changes,
        samples=samples,
        cost=cost_rows(series, run.samples(), run.records()),
        lanes=Lanes.of(samples("replica")),
        slo=slo,
    )


def of_deployments(samples: pd.DataFrame, deployments: Collection[str]) -> pd.DataFrame:
    """Return the samples of these deployments; samples without a deployment are all kept."""
    if "deployment" not in samples:
        return samples
    return samples[samples.deployment.isin(list(deployments))]


def with_offered(requests: pd.DataFrame, changes: Sequence[LoadChange]) -> pd.DataFrame:
    """Return `requests` with the column `offered`: the rate of a live load in requests/s."""
    times = requests.time_s.tolist()
    return requests.assign(offered=offered_rates(changes, times) if changes else float("nan"))


def with_gaps(times: Vector, values: Vector) -> Curve:
    """Insert a NaN wherever two times are more than `GAP_S` apart."""
    after = np.flatnonzero(np.diff(times) > GAP_S) + 1
    return np.insert(times, after, times[after] - GAP_S / 2), np.insert(values, after, np.nan)


def thinned(times: Vector, values: Vector) -> Curve:
    """Return at most `MAX_POINTS` evenly chosen points."""
    step = -(-len(times) // MAX_POINTS) or 1
    return times[::step], values[::step].round(6)


def _curve(rows: pd.DataFrame, column: str) -> Curve:
    return thinned(rows.time_s.to_numpy(float), rows[column].to_numpy(float))
