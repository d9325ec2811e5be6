"""Predictions compared with runs that were written by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.records import record
from support.whatif import calibration, requests, service

from workbench.errors import SettingError
from workbench.records import DecisionSample, DeploymentSample
from workbench.runs.run import Run
from workbench.whatif.comparison import compare_requests, compare_scaling, replicas_at
from workbench.whatif.result import Simulation
from workbench.whatif.simulator import simulate

NewRun = Callable[[], Run]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path, {}, run_id="measured")


@pytest.fixture
def simulation() -> Simulation:
    """Two requests, one after another, that take a second per step: 3 steps each."""
    return simulate(service(), requests((0.0, 8, 3), (10.0, 8, 3)), calibration())


def test_the_error_is_a_share_of_the_measured_figure(run: Run, simulation: Simulation) -> None:
    # Measured on a clock that began 100 s before: a TTFT of 2 s, and 2 s per further token.
    for sent_s in (100.0, 110.0):
        run.append_request(record(sent_s, sent_s + 2, sent_s + 4, sent_s + 6))
    table = compare_requests(simulation, run)
    assert table.predicted["mean_ttft_ms"] == pytest.approx(1000)
    assert table.measured["mean_ttft_ms"] == pytest.approx(2000)
    for figure in ("mean_ttft_ms", "p99_ttft_ms", "mean_e2el_ms", "p99_e2el_ms", "mean_tpot_ms"):
        assert table.error[figure] == pytest.approx(-0.5), figure
    # 6 tokens in 13 s, and in 16 s.
    assert table.error["output_throughput"] == pytest.approx(16 / 13 - 1)


def test_a_run_without_completed_requests_is_named(run: Run, simulation: Simulation) -> None:
    with pytest.raises(SettingError, match="run measured has no completed request"):
        compare_requests(simulation, run)


@pytest.fixture
def scaled() -> Simulation:
    """A second replica that is wanted at the second tick, and starts within 5 s."""
    load = requests(*[(0.05 + at_s / 10, 8, 100) for at_s in range(10)])
    spec = service(max_replicas=2, target_ongoing_requests=1, upscale_delay_s=0)
    return simulate(spec, load, calibration(step_s=0.2, start_s=(5.0,)))


def test_scaling_is_compared_on_the_clock_of_the_run(run: Run, scaled: Simulation) -> None:
    (decision, *_) = scaled.decisions()
    assert (decision.from_target, decision.to_target) == (1, 2)
    second_s = float(scaled.replicas_frame().ready_s[1])
    start_s, late_s = 50.0, 4.0
    run.append_request(record(start_s + 0.05, 51.0, 52.0))
    moment_s = start_s + decision.time_s + late_s
    run.append_telemetry(
        DecisionSample(time_s=moment_s, deployment="d", from_target=1, to_target=2)
    )
    surprise = DecisionSample(time_s=moment_s + 1, deployment="d", from_target=2, to_target=3)
    run.append_telemetry(surprise)
    for tick in range(int(start_s), int(start_s + scaled.duration_s)):
        running = 2 if tick - start_s >= second_s + late_s else 1
        sample = DeploymentSample(
            time_s=float(tick), deployment="d", running=running, starting=0, stopping=0
        )
        run.append_telemetry(sample)
    found = compare_scaling(scaled, run, "d")
    assert found.decision_errors_s == pytest.approx([-late_s])
    assert found.unmatched == len(scaled.decisions()) - 1 + 1
    seconds = int(scaled.duration_s)
    assert found.right_share == pytest.approx(1 - late_s / seconds)
    running_s = 2 * scaled.duration_s - (second_s + late_s)
    assert found.measured_replica_seconds == pytest.approx(running_s, abs=1)


def test_replicas_count_from_ready_until_they_stop(scaled: Simulation) -> None:
    frame = scaled.replicas_frame()
    ready_s = float(frame.ready_s[1])
    import numpy as np

    assert replicas_at(scaled, np.array([0.0, ready_s - 0.01, ready_s])).tolist() == [1, 1, 2]


def test_a_run_without_telemetry_is_named(run: Run, scaled: Simulation) -> None:
    run.append_request(record(0.0, 1.0, 2.0))
    with pytest.raises(SettingError, match="no telemetry of d"):
        compare_scaling(scaled, run, "d")
