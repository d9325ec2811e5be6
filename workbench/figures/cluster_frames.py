"""What the one timeline is drawn from: a run's requests, samples and changes as frames."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workbench.cost.series import CostSeries, cost_rows
from workbench.metrics.windows import request_windows
from workbench.records import LoadChange
from workbench.workload.rate_curve import offered_rates

if TYPE_CHECKING:
    import pandas as pd

    from workbench.runs.run import Run

GAP_S = 3.5
"""Samples come once a second; what is further apart is a gap, and no line is drawn over it."""
ENGINE = ("running_requests", "waiting_requests", "kv_cache_usage")


@dataclass(frozen=True)
class Frames:
    """One run, or the last minutes of one.

    `requests` has a row a second (`workbench.metrics.windows.WINDOW_COLUMNS`) and `offered`, the
    rate wanted, NaN where no live load told it. `deployments` and `decisions` are samples of the
    models' deployments alone. `engine` sums the requests over all replicas and averages the use of
    their KV-caches; `cost` is in dollars, and has no rows without prices.
    """

    requests: pd.DataFrame
    changes: Sequence[LoadChange]
    deployments: pd.DataFrame
    decisions: pd.DataFrame
    engine: pd.DataFrame
    cost: pd.DataFrame


def frames_of(
    run: Run,
    deployments: Collection[str],
    *,
    cost: CostSeries | None = None,
) -> Frames:
    """The frames of a whole run, read from its folder. `deployments` are those of the models.

    `cost` is a new series, which knows the prices.
    """
    own = {kind: of(run.samples_frame(kind), deployments) for kind in ("deployment", "decision")}
    changes = run.changes()
    seen = [*own["deployment"].time_s, *(change.time_s for change in changes)]
    requests = request_windows(run.records(), until_s=max(seen, default=0.0))
    series = cost or CostSeries(None, None)
    return Frames(
        requests=with_offered(requests, changes),
        changes=changes,
        deployments=own["deployment"],
        decisions=own["decision"],
        engine=engine_rows(of(run.samples_frame("replica"), deployments)),
        cost=cost_rows(series, run.samples(), run.records()),
    )


def of(samples: pd.DataFrame, deployments: Collection[str]) -> pd.DataFrame:
    """The samples of these deployments."""
    return samples[samples.deployment.isin(list(deployments))]


def with_offered(requests: pd.DataFrame, changes: Sequence[LoadChange]) -> pd.DataFrame:
    """`requests` and the rate that a live load wanted at each of its rows."""
    times = requests.time_s.tolist()
    return requests.assign(offered=offered_rates(changes, times) if changes else float("nan"))


def engine_rows(replicas: pd.DataFrame) -> pd.DataFrame:
    """A row a moment over all replicas, and a row of NaN in each gap."""
    import pandas as pd

    numbers = replicas.reindex(columns=["time_s", *ENGINE]).astype(float)
    grouped = numbers.groupby("time_s")
    rows = grouped[list(ENGINE[:2])].sum(min_count=1)
    rows["kv_cache_usage"] = grouped["kv_cache_usage"].mean()
    rows = rows.reset_index()
    before = rows.time_s[rows.time_s.diff() > GAP_S] - GAP_S / 2
    gaps = pd.DataFrame({"time_s": before})
    return pd.concat([rows, gaps]).sort_values("time_s", ignore_index=True) if len(gaps) else rows
