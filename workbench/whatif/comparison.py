"""Compare a simulation with the run that it predicts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from workbench.cost.replica_seconds import replica_seconds_of
from workbench.errors import SettingError
from workbench.metrics.summary import summarize
from workbench.records import DecisionSample, DeploymentSample

if TYPE_CHECKING:
    import pandas as pd

    from workbench.runs.run import Run
    from workbench.whatif.result import Simulation
    from workbench.whatif.state import Floats

FIGURES = (
    *("mean_e2el_ms", "p99_e2el_ms", "mean_ttft_ms", "p99_ttft_ms"),
    *("mean_tpot_ms", "p99_tpot_ms", "output_throughput"),
)
"""The figures of a summary that are compared."""


@dataclass(frozen=True)
class ScalingComparison:
    """The predicted and the measured scaling of a deployment.

    Attributes:
        predicted_replica_seconds: Seconds of all replicas in the simulation.
        measured_replica_seconds: The same in the run, while the simulated time lasted.
        right_share: Share of the samples at which as many replicas ran as predicted.
        decisions: A row per change of the target: from, to, and when it was predicted and measured,
            in seconds since the start of the load; NaN where one of the two is missing.
    """

    predicted_replica_seconds: float
    measured_replica_seconds: float
    right_share: float
    decisions: pd.DataFrame

    @property
    def replica_seconds_error(self) -> float:
        """The error of the replica-seconds, as a share of the measured ones."""
        return self.predicted_replica_seconds / self.measured_replica_seconds - 1

    @property
    def decision_errors_s(self) -> list[float]:
        """How much later than measured each decision was predicted, in seconds."""
        late = self.decisions.predicted_s - self.decisions.measured_s
        return [float(seconds) for seconds in late.dropna()]

    @property
    def unmatched(self) -> int:
        """Decisions that were predicted and did not happen, or happened and were not predicted."""
        return int(self.decisions[["predicted_s", "measured_s"]].isna().any(axis=1).sum())


def compare_requests(simulation: Simulation, run: Run) -> pd.DataFrame:
    """Return a row per figure of the requests: predicted, measured, and the error.

    Args:
        simulation: The prediction.
        run: The run of the same load.

    Returns:
        The index is the name of the figure. `error` is a share of the measured value.

    Raises:
        SettingError: The run has no completed request.
    """
    import pandas as pd

    predicted = simulation.summary()
    measured = summarize(run.records(), warmup_s=simulation.warmup_s)
    if not measured.completed:
        raise SettingError(
            f"run {run.run_id} has no completed request to compare with; measure it again"
        )
    frame = pd.DataFrame(
        {
            "predicted": {name: predicted.figure(name) for name in FIGURES},
            "measured": {name: measured.figure(name) for name in FIGURES},
        },
        dtype=float,
    )
    frame["error"] = frame.predicted / frame.measured - 1
    frame.attrs["marks"] = simulation.marks
    return frame.rename_axis("figure")


def compare_scaling(
    simulation: Simulation, run: Run, deployment: str, *, start_s: float | None = None
) -> ScalingComparison:
    """Compare the replicas and the decisions of a simulation with those of a run.

    Args:
        simulation: The prediction.
        run: The run of the same load, with telemetry.
        deployment: The name of the deployment in the run.
        start_s: When the load began on the run's clock; by default from when its first request was
            due.

    Raises:
        SettingError: The run has no telemetry of the deployment, or no request.
    """
    offset_s = load_start_s(simulation, run) if start_s is None else start_s
    end_s = offset_s + simulation.duration_s
    everything = [
        sample
        for sample in run.samples()
        if isinstance(sample, DeploymentSample | DecisionSample) and sample.deployment == deployment
    ]
    samples = [sample for sample in everything if offset_s <= sample.time_s <= end_s]
    times, measured = _running(samples)
    if not len(times):
        raise SettingError(
            f"run {run.run_id} has no telemetry of {deployment}; measure it with Telemetry"
        )
    meter = replica_seconds_of(everything, {deployment}, start_s=offset_s, end_s=end_s)
    return ScalingComparison(
        predicted_replica_seconds=simulation.replica_seconds().total,
        measured_replica_seconds=meter.seconds()[deployment].total,
        right_share=float((replicas_at(simulation, times - offset_s) == measured).mean()),
        decisions=_decisions(simulation.decisions(), samples, offset_s),
    )


def load_start_s(simulation: Simulation, run: Run) -> float:
    """Return when the simulated load began on the clock of its run, in seconds.

    Raises:
        SettingError: The run has no request.
    """
    due = [record.due_s for record in run.records()]
    if not due:
        raise SettingError(f"run {run.run_id} has no request; measure it again")
    return min(due) - float(np.nanmin(simulation.columns().due_s))


def replicas_at(simulation: Simulation, times: Floats) -> Floats:
    """Return how many replicas run at some times of a simulation, in seconds since its start."""
    frame = simulation.replicas_frame()
    ready = np.sort(frame.ready_s.dropna().to_numpy())
    stopping = np.sort(frame.stopping_s[frame.ready_s.notna()].dropna().to_numpy())
    started: Floats = np.searchsorted(ready, times, side="right").astype(float)
    return started - np.searchsorted(stopping, times, side="right")


def _running(samples: Iterable[DeploymentSample | DecisionSample]) -> tuple[Floats, Floats]:
    """Return when the running replicas were sampled, and how many they were."""
    found = [
        (sample.time_s, sample.running)
        for sample in samples
        if isinstance(sample, DeploymentSample) and sample.running is not None
    ]
    table = np.array(found, float).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _decisions(
    predicted: Iterable[DecisionSample],
    samples: Iterable[DeploymentSample | DecisionSample],
    offset_s: float,
) -> pd.DataFrame:
    """Pair the decisions with the same change of the target, in order."""
    import pandas as pd

    times: dict[tuple[int, int], tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for decision in predicted:
        times[decision.from_target, decision.to_target][0].append(decision.time_s)
    for sample in samples:
        if isinstance(sample, DecisionSample):
            times[sample.from_target, sample.to_target][1].append(sample.time_s - offset_s)
    rows = [
        (before, after, _nth(simulated, at), _nth(seen, at))
        for (before, after), (simulated, seen) in times.items()
        for at in range(max(len(simulated), len(seen)))
    ]
    columns = ["from_target", "to_target", "predicted_s", "measured_s"]
    frame = pd.DataFrame(rows, columns=columns)
    first = frame[["predicted_s", "measured_s"]].min(axis=1)
    return frame.iloc[np.argsort(first, kind="stable")].reset_index(drop=True)


def _nth(times: list[float], at: int) -> float:
    return times[at] if at < len(times) else float("nan")
