"""Many settings at once, from Python and from the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.whatif import calibration, requests, service

import workbench as wb
from serving.errors import SpecError
from workbench.__main__ import main
from workbench.errors import SettingError
from workbench.whatif.sweeps import sweep
from workbench.workload.traces import read_trace

GRID = {"target_ongoing_requests": [1, 8], "max_replicas": [1, 4]}


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = [f"{at_s:.3f},100,50" for at_s in np.sort(rng.uniform(0, 300, 300))]
    file = tmp_path / "trace.csv"
    file.write_text("\n".join(["Timestamp,Request tokens,Response tokens", *rows, "301,0,0"]))
    return file


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    return calibration(step_s=0.05, max_model_len=200).save(tmp_path / "here.json")


def test_every_combination_is_a_row() -> None:
    load = requests(*[(float(at_s), 8, 20) for at_s in range(60)])
    slo = wb.SLO(ttft_ms=2000)
    prices = wb.Prices(cpu_hour=1)
    table = sweep(service(), load, calibration(), GRID, slo=slo, prices=prices)
    assert table[[*GRID]].to_numpy().tolist() == [[1, 1], [1, 4], [8, 1], [8, 4]]
    assert table.completed.tolist() == [60] * 4
    assert table.slo_attainment.between(0, 1).all()
    one, several = table.replica_seconds[0], table.replica_seconds[1]
    assert several > one
    # One replica of one CPU, all day.
    assert table.cost_per_day[0] == pytest.approx(24)


def test_a_setting_that_does_not_exist_is_named() -> None:
    load = requests((0.0, 8, 2))
    with pytest.raises(SettingError, match="got 'target'; the fields are min_replicas"):
        sweep(service(), load, calibration(), {"target": [1]})
    with pytest.raises(SettingError, match="at least one value of max_replicas"):
        sweep(service(), load, calibration(), {"max_replicas": []})
    with pytest.raises(SpecError, match="target_ongoing_requests must be at most"):
        sweep(service(), load, calibration(), {"target_ongoing_requests": [1000]})


def test_requests_that_do_not_fit_are_counted_and_skipped(trace: Path) -> None:
    found = wb.whatif.simulate(service(), read_trace(trace), calibration(max_model_len=200))
    assert found.summary().completed == 300
    assert found.marks == ("1 requests have no lengths",)
    with pytest.raises(SettingError, match="300 requests do not fit the context"):
        wb.whatif.simulate(service(), read_trace(trace), calibration(max_model_len=149))
    tiny = calibration(kv_blocks=9, block_size=16)
    with pytest.raises(SettingError, match="do not fit the KV cache"):
        wb.whatif.simulate(service(), read_trace(trace), tiny)


def test_the_command_prints_a_table_and_writes_it(
    trace: Path, stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table.csv"
    grid = ["--grid", "target_ongoing_requests=1,2", "--grid", "max_replicas=4"]
    options = ["--calibration", str(stored), "--slo", "ttft_ms=500", "--out", str(out)]
    assert main(["whatif", str(trace), *options, *grid]) == 0
    table = pd.read_csv(out)
    assert table.target_ongoing_requests.tolist() == [1, 2]
    assert table.completed.tolist() == [300, 300]
    printed = capsys.readouterr().out
    assert "slo_attainment" in printed
    assert "doubtful    1 requests have no lengths" in printed
    assert "no start times" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--grid", "max_replicas"], "--grid must be NAME=V1,V2"),
        (["--grid", "max_replicas=[1"], "--grid must have numbers"),
        (["--grid", "max_replicas=1", "--grid", "max_replicas=2"], "name each field once"),
        (["--grid", "max_replicas=1", "--slo", "ttft"], "--slo must be NAME=MS"),
    ],
)
def test_the_command_rejects_what_it_cannot_read(
    options: list[str], message: str, trace: Path, stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["whatif", str(trace), "--calibration", str(stored), *options]) == 2
    assert message in capsys.readouterr().err
