"""Settings that are simulated at the same time."""

from __future__ import annotations

import time

import pandas as pd
import pytest
from support.whatif import calibration, requests, service

from workbench.errors import SettingError
from workbench.whatif import parallel
from workbench.whatif.progress import make_progress
from workbench.whatif.sweeps import sweep

GRID = {"target_ongoing_requests": [1, 2, 4], "max_replicas": [1, 2, 4]}
LOAD = requests(*[(0.3 * number, 8, 20) for number in range(200)])


def test_threads_give_the_table_of_one_after_another(capsys: pytest.CaptureFixture[str]) -> None:
    alone = sweep(service(), LOAD, calibration(), GRID, parallel="off", progress="lines")
    threads = sweep(service(), LOAD, calibration(), GRID, parallel="threads", progress="lines")
    pd.testing.assert_frame_equal(alone, threads)
    assert alone.replica_seconds.nunique() > 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[-1] for line in lines] == ["9 of 9 settings simulated"] * 2


def test_results_keep_the_order_of_the_values() -> None:
    def slow_first(value: int) -> int:
        time.sleep(0.02 if value < 4 else 0)
        return value * value

    shown = make_progress(None, 8)
    found = parallel._in_threads(slow_first, range(8), 4, shown)
    assert found == [value * value for value in range(8)]


def test_a_cluster_that_is_not_there_and_an_unknown_kind_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parallel, "_is_connected", lambda: False)
    with pytest.raises(SettingError, match='parallel = "ray" needs a connection'):
        sweep(service(), LOAD, calibration(), GRID, parallel="ray")
    with pytest.raises(SettingError, match="parallel must be one of auto, ray, threads, off"):
        sweep(service(), LOAD, calibration(), GRID, parallel="many")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="progress must be 'bar', 'lines' or None"):
        sweep(service(), LOAD, calibration(), GRID, progress="dots")
