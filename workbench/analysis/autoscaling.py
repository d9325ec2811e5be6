"""Compare autoscaling policies on one load, and detect flapping, from saved runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.analysis.reactions import Reaction, run_reactions
from workbench.cost.replica_seconds import ReplicaSeconds, replica_seconds_of
from workbench.records import DecisionSample

if TYPE_CHECKING:
    import pandas as pd

    from workbench.runs.run import Run

FLAP_WINDOW_S = 60.0
FLAP_REVERSALS = 2


def policy_table(
    runs: Mapping[str, Run], deployment: str, load_changes_s: Mapping[str, list[float]]
) -> pd.DataFrame:
    """Compare runs of several policies under the same load, one row per policy.

    Columns: `ttft_p50_ms` and `ttft_p99_ms` of the completed requests, from schedule;
    `failed_or_shed`, the requests without a complete answer; `replica_s`, the replica-seconds
    held, in any state; `changes` of the target; `wanted_s` and `second_replica_s`, the seconds from
    the rise of the load to the policy's request for more and to the new replica's first token (NaN
    if there was none); `flaps`, how often the target went back and forth.

    Args:
        runs: The runs by policy.
        deployment: The scaled deployment.
        load_changes_s: The times at which each run's load changed, on the run's clock.
    """
    import pandas as pd

    rows = {name: _row(run, deployment, load_changes_s.get(name, [])) for name, run in runs.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("policy")


def _row(run: Run, deployment: str, changes: list[float]) -> dict[str, Any]:
    requests = run.requests_frame()
    completed = requests[requests.status == "ok"]
    ttft_ms = completed.ttft_from_schedule_ms.to_numpy(float)
    decisions = [
        decision for decision in recorded_decisions(run) if decision.deployment == deployment
    ]
    up = next((r for r in run_reactions(run, changes) if r.deployment == deployment and r.up), None)
    quantiles = np.percentile(ttft_ms, [50, 99]) if len(ttft_ms) else [np.nan, np.nan]
    return {
        "requests": len(requests),
        "failed_or_shed": len(requests) - len(completed),
        "ttft_p50_ms": quantiles[0],
        "ttft_p99_ms": quantiles[1],
        "replica_s": _replica_seconds(run, deployment),
        "changes": len(decisions),
        "wanted_s": _since(up, "requested_s"),
        "second_replica_s": _since(up, "first_token_s"),
        "flaps": len(flapping(decisions)),
    }


def _since(reaction: Reaction | None, mark: str) -> float:
    """Return the seconds from the change of the load to `mark`, NaN if either is unknown."""
    reached_s = None if reaction is None else getattr(reaction, mark)
    if reaction is None or reaction.load_changed_s is None or reached_s is None:
        return float("nan")
    return float(reached_s - reaction.load_changed_s)


def _replica_seconds(run: Run, deployment: str) -> float:
    seconds = replica_seconds_of(run.samples(), [deployment]).seconds()
    return seconds.get(deployment, ReplicaSeconds()).total


def recorded_decisions(run: Run) -> list[DecisionSample]:
    """Return the decisions in a run's telemetry."""
    return [decision for decision in run.samples() if isinstance(decision, DecisionSample)]


@dataclass(frozen=True)
class Flapping:
    """A stretch in which a target went up and down repeatedly within a short time."""

    deployment: str
    start_s: float
    end_s: float
    targets: tuple[int, ...]

    def __str__(self) -> str:
        path = " → ".join(map(str, self.targets))
        return (
            f"{self.deployment} flaps: {path} within {self.end_s - self.start_s:.0f} s from "
            f"{self.start_s:.0f} s on. Use a longer downscale_delay_s or look_back_period_s."
        )


def flapping(
    decisions: Iterable[DecisionSample],
    *,
    window_s: float = FLAP_WINDOW_S,
    reversals: int = FLAP_REVERSALS,
) -> list[Flapping]:
    """Return the stretches in which a target reversed at least `reversals` times.

    Each reversal follows the last one within `window_s` seconds. Up, up, down is a load that
    rose and fell; up, down, up within a minute is flapping.
    """
    series: dict[str, list[DecisionSample]] = {}
    for decision in decisions:
        series.setdefault(decision.deployment, []).append(decision)
    return [
        Flapping(
            deployment=name,
            start_s=stretch[0].time_s,
            end_s=stretch[-1].time_s,
            targets=(stretch[0].from_target, *(decision.to_target for decision in stretch)),
        )
        for name, of_deployment in series.items()
        for stretch in _stretches(of_deployment, window_s)
        if len(stretch) > reversals
    ]


def _stretches(decisions: Sequence[DecisionSample], window_s: float) -> list[list[DecisionSample]]:
    """Split decisions into stretches in which each one reverses the last, soon after it."""
    stretches: list[list[DecisionSample]] = []
    for decision in decisions:
        last = stretches[-1][-1] if stretches else None
        reverses = last is not None and _is_up(decision) != _is_up(last)
        if last is not None and reverses and decision.time_s - last.time_s <= window_s:
            stretches[-1].append(decision)
        else:
            stretches.append([decision])
    return stretches


def _is_up(decision: DecisionSample) -> bool:
    return decision.to_target > decision.from_target
