"""The frontier of throughput and speed per user, computed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.records import record

from workbench.analysis.pareto import efficient, frontier_points
from workbench.errors import RunError, SettingError
from workbench.figures.pareto import frontier
from workbench.metrics.health import ClientHealth
from workbench.metrics.summary import Summary, summarize
from workbench.records import GpuSample, RequestRecord
from workbench.runs.run import Run

LIMITED = ClientHealth(client_limited=True, reasons=("late",))


def requests(users: int, gap_s: float) -> list[RequestRecord]:
    """Return the requests of users who each send 5 answers of 11 tokens, one after another."""
    length_s = 10 * gap_s
    return [
        record(turn * length_s, *(turn * length_s + gap_s * token for token in range(11)))
        for turn in range(5)
        for _ in range(users)
    ]


def load(users: int, gap_s: float) -> Summary:
    return summarize(requests(users, gap_s))


def test_points_follow_from_the_definitions() -> None:
    points = frontier_points([load(1, 0.01), load(8, 0.02)], gpus=2)
    assert points.concurrency.tolist() == pytest.approx([1, 8])
    assert points.tokens_per_user.tolist() == pytest.approx([100, 50])
    # Each user gets 11 tokens in 10 gaps.
    assert points.tokens_per_gpu.tolist() == pytest.approx([11 / 0.1 / 2, 8 * 11 / 0.2 / 2])
    assert points.efficient.tolist() == [True, True]
    assert points.attrs["per"] == "GPU"


def test_stored_runs_know_their_gpus(tmp_path: Path) -> None:
    runs = []
    for users in (1, 4):
        run = Run.create(tmp_path, {}, run_id=f"users-{users}")
        for gpu in (0, 1, 0, 1):
            run.append_telemetry(GpuSample(time_s=1.0, node="n", gpu=gpu))
        run.finish(load(users, 0.01))
        runs.append(run)
    points = frontier_points(runs)
    assert points.label.tolist() == ["users-1", "users-4"]
    assert points.tokens_per_gpu.tolist() == pytest.approx([11 / 0.1 / 2, 4 * 11 / 0.1 / 2])
    assert points.efficient.tolist() == [False, True]
    assert frontier_points([load(1, 0.01)]).attrs["per"] == "endpoint"


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12))
def test_efficient_points_by_comparing_each_pair(pairs: list[tuple[int, int]]) -> None:
    x, y = (np.array(values, float) for values in zip(*pairs, strict=True))
    expected = [
        not any(a >= own[0] and b >= own[1] and (a, b) != own for a, b in pairs) for own in pairs
    ]
    assert efficient(x, y).tolist() == expected


def test_unknown_points_are_not_efficient() -> None:
    assert efficient(np.array([np.nan, 1.0]), np.array([9.0, 1.0])).tolist() == [False, True]


def test_figure_joins_the_efficient_points_of_each_group() -> None:
    slow = load(4, 0.05).model_copy(update={"client_health": LIMITED})
    sources = [load(1, 0.01), load(8, 0.02), slow, load(1, 0.02)]
    points = frontier_points(sources, gpus=1, groups=["a", "a", "a", "b"])
    figure = frontier(points)
    lines = {trace.name: trace for trace in figure.data}
    assert set(lines) == {"a", "a, surpassed", "b"}
    assert list(lines["a"].x) == pytest.approx([50, 100])
    assert list(lines["a"].text) == ["8", "1"]
    assert list(lines["a, surpassed"].marker.symbol) == ["circle-open"]
    assert "CLIENT LIMITED" in figure.layout.title.text
    assert "per GPU" in figure.layout.yaxis.title.text


def test_invalid_input(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="run r has no summary"):
        frontier_points([Run.create(tmp_path, {}, run_id="r")])
    with pytest.raises(SettingError, match="gpus must be at least 1, got 0"):
        frontier_points([load(1, 0.1)], gpus=0)
    with pytest.raises(SettingError, match="groups must have a value for each of the 1 sources"):
        frontier_points([load(1, 0.1)], groups=["a", "b"])
    with pytest.raises(SettingError, match="efficient is missing"):
        frontier(pd.DataFrame(columns=["label", "group", "concurrency"]))
