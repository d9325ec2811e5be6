"""Autoscaling policies side by side on one load: a row and a panel for each, from their runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.analysis.reactions import run_reactions
from workbench.records import DecisionSample

if TYPE_CHECKING:
    import pandas as pd

    from workbench.runs.run import Run


def policy_table(
    runs: Mapping[str, Run], deployment: str, load_changes_s: Mapping[str, list[float]]
) -> pd.DataFrame:
    """A row a policy: what its users saw, what it held, and how it decided.

    `ttft_p50_ms`, `ttft_p99_ms`: of completed requests, from when each was due. `failed_or_shed`:
    requests that got no whole answer. `replica_s`: the integral over the run of replicas running,
    starting or stopping. `changes`: of the target. `wanted_s`, `second_replica_s`: from the load's
    rise to the policy asking for more, and to the new replica's first token (NaN: it never did).
    `flaps`: stretches in which the target went back and forth.
    """
    import pandas as pd

    rows = {name: _row(run, deployment, load_changes_s.get(name, [])) for name, run in runs.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("policy")


def _row(run: Run, deployment: str, changes: list[float]) -> dict[str, Any]:
    requests = run.requests_frame()
    done = requests[requests.status == "ok"]
    ttft_ms = ((done.first_token_s - done.scheduled_s) * 1e3).to_numpy(float)
    made = [one for one in recorded_decisions(run) if one.deployment == deployment]
    up = next((r for r in run_reactions(run, changes) if r.deployment == deployment and r.up), None)
    quantiles = np.percentile(ttft_ms, [50, 99]) if len(ttft_ms) else [np.nan, np.nan]
    return {
        "requests": len(requests),
        "failed_or_shed": len(requests) - len(done),
        "ttft_p50_ms": quantiles[0],
        "ttft_p99_ms": quantiles[1],
        "replica_s": held(run.samples_frame("deployment"), deployment),
        "changes": len(made),
        "wanted_s": _since(up, "policy_wanted_s"),
        "second_replica_s": _since(up, "first_token_s"),
        "flaps": len(flapping(made)),
    }


def _since(reaction: Any, mark: str) -> float:
    if reaction is None or reaction.load_changed_s is None or getattr(reaction, mark) is None:
        return float("nan")
    return float(getattr(reaction, mark) - reaction.load_changed_s)


def held(telemetry: pd.DataFrame, deployment: str) -> float:
    """Replica-seconds of one deployment over its samples: running, starting and stopping ones."""
    rows = telemetry[telemetry.deployment == deployment].sort_values("time_s")
    replicas = rows[["running", "starting", "stopping"]].astype(float).sum(axis=1).to_numpy()
    times = rows.time_s.to_numpy(float)
    return float((replicas[:-1] * np.diff(times)).sum())


FLAP_WINDOW_S = 60.0


FLAP_REVERSALS = 2


def recorded_decisions(run: Run) -> list[DecisionSample]:
    """The decisions that a run's telemetry saw."""
    return [one for one in run.samples() if isinstance(one, DecisionSample)]


@dataclass(frozen=True)
class Flapping:
    """A target that went up and down again in short order."""

    deployment: str
    start_s: float
    end_s: float
    targets: tuple[int, ...]

    def __str__(self) -> str:
        path = " → ".join(map(str, self.targets))
        return (
            f"{self.deployment} flaps: {path} within {self.end_s - self.start_s:.0f} s from "
            f"{self.start_s:.0f} s on. A longer downscale_delay_s or look_back_period_s calms it."
        )


def flapping(
    made: Iterable[DecisionSample],
    *,
    window_s: float = FLAP_WINDOW_S,
    reversals: int = FLAP_REVERSALS,
) -> list[Flapping]:
    """Stretches in which a target reversed at least `reversals` times, each within `window_s`.

    Up, up, down is a load that came and went; up, down, up within a minute is flapping.
    """
    series: dict[str, list[DecisionSample]] = {}
    for one in made:
        series.setdefault(one.deployment, []).append(one)
    return [
        Flapping(
            deployment=name,
            start_s=stretch[0].time_s,
            end_s=stretch[-1].time_s,
            targets=(stretch[0].from_target, *(one.to_target for one in stretch)),
        )
        for name, own in series.items()
        for stretch in _stretches(own, window_s)
        if len(stretch) > reversals
    ]


def _stretches(own: Sequence[DecisionSample], window_s: float) -> list[list[DecisionSample]]:
    """Runs of decisions in which each one reverses the last, soon after it."""
    found: list[list[DecisionSample]] = []
    for one in own:
        last = found[-1][-1] if found else None
        reverses = last is not None and (one.to_target > one.from_target) != (
            last.to_target > last.from_target
        )
        if last is not None and reverses and one.time_s - last.time_s <= window_s:
            found[-1].append(one)
        else:
            found.append([one])
    return found
