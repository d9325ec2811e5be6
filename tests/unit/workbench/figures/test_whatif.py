"""Figures of simulations whose values are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.records import record
from support.whatif import calibration, requests, service

from workbench.errors import SettingError
from workbench.figures.whatif import (
    frontier_rows,
    prediction_overlay,
    settings_frontier,
    simulated_day,
)
from workbench.records import DeploymentSample
from workbench.runs.run import Run
from workbench.whatif.simulator import simulate

TABLE = pd.DataFrame(
    {
        "max_replicas": [1, 2, 3, 4],
        "cost_per_day": [10.0, 20.0, 15.0, 30.0],
        "slo_attainment": [0.5, 0.9, 0.4, 0.95],
        "marks": ["", "", "a poor fit", "a poor fit; another card"],
    }
)


def test_the_frontier_leaves_out_what_is_dearer_and_worse() -> None:
    assert frontier_rows(TABLE).max_replicas.tolist() == [1, 2, 4]
    figure = settings_frontier(TABLE, ["max_replicas"])
    surpassed, best = figure.data
    assert list(best.x) == [10, 20, 30]
    assert list(best.y) == [0.5, 0.9, 0.95]
    assert list(best.marker.symbol) == ["circle", "circle", "circle-open"]
    assert list(surpassed.customdata) == ["max_replicas = 3"]
    assert figure.layout.title.subtitle.text == "doubtful: a poor fit; another card"


def test_a_table_without_prices_is_named() -> None:
    with pytest.raises(SettingError, match="columns cost_per_day; call sweep with slo and prices"):
        settings_frontier(TABLE.drop(columns="cost_per_day"), ["max_replicas"])


def test_a_day_shows_the_load_the_replicas_and_the_latency() -> None:
    # One request a second for 144 s, so one in each interval; a step takes a second.
    load = requests(*[(number + 0.5, 8, 1) for number in range(144)])
    figure = simulated_day(simulate(service(), load, calibration(max_model_len=64)))
    rate, running, target, p50, p99 = figure.data
    assert np.allclose(np.array(rate.y)[:140], 1, rtol=0.05)
    assert set(running.y) == set(target.y) == {1}
    assert np.nanmin(p50.y) == pytest.approx(1000)
    assert (np.array(p99.y) >= np.array(p50.y) - 1e-9).all()
    assert figure.layout.title.subtitle.text is None


def test_an_overlay_shows_both_and_what_is_doubtful(tmp_path: Path) -> None:
    run = Run.create(tmp_path, {})
    run.append_request(record(7.0, 9.0, 11.0))
    sample = DeploymentSample(time_s=8.0, deployment="d", running=1, starting=0, stopping=0)
    run.append_telemetry(sample)
    doubtful = calibration(marks=("a poor fit",))
    figure = prediction_overlay(simulate(service(), requests((0.0, 8, 2)), doubtful), run, "d")
    lines = {(trace.name, trace.xaxis): list(trace.x) for trace in figure.data}
    assert lines["Predicted", "x"] == pytest.approx([1000])
    assert lines["Measured", "x"] == pytest.approx([2000])
    assert lines["Predicted", "x2"] == pytest.approx([2000])
    assert lines["Measured", "x2"] == pytest.approx([4000])
    assert lines["Measured", "x3"] == pytest.approx([1.0])
    assert figure.layout.title.subtitle.text == "doubtful: a poor fit"
