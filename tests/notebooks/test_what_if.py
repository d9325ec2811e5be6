"""Notebook 11 without a cluster, from a calibration in a file, and the answers to its exercise."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.executed_notebook import output_text
from support.whatif import calibration, service

import workbench as wb
from workbench.automation.execution import run_notebook
from workbench.automation.notebooks import find_notebook
from workbench.whatif.calibration import Calibration
from workbench.whatif.workload import single_requests

GRID: dict[str, Any] = {
    "grid": {"max_replicas": [1, 3], "target_ongoing_requests": [0.5, 4]},
    "delays": {"upscale_delay_s": [0], "downscale_delay_s": [60, 600]},
}


@pytest.fixture
def stored() -> Calibration:
    """A replica whose steps take 20 ms and 3 ms per request."""
    times = {"step_s": 0.02, "running_s": 0.003, "prefill_token_s": 1e-4, "start_s": (30.0,)}
    return calibration(**times, max_num_seqs=128, marks=("not measured",))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_day_is_simulated_and_a_setting_picked(stored: Calibration, tmp_path: Path) -> None:
    file = stored.save(tmp_path / "stored.json")
    given = GRID | {"calibration": str(file), "requests": 1000, "live": False, "sliders": False}
    executed = run_notebook(find_notebook("11"), given, runs=tmp_path, run_id="what-if")
    outputs = output_text(executed)
    assert "8 of 8 settings simulated" in outputs
    assert "doubtful: not measured" in outputs
    picked = re.search(r"(\{[^{}]*\}): \$(\d+\.\d\d) per day, (\d+\.\d)% within the SLO", outputs)
    assert picked is not None
    setting = json.loads(picked[1].replace("'", '"'))
    assert {
        name: setting[name] in values for group in GRID.values() for name, values in group.items()
    } == dict.fromkeys([*GRID["grid"], *GRID["delays"]], True)
    report = (tmp_path / "what-if" / "report.html").read_text()
    assert "Cost and SLO attainment of each setting" in report
    cells = json.loads(executed.read_text())["cells"]
    bundles = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    assert not any("widget" in mime for bundle in bundles for mime in bundle)


def test_answer_11_more_ongoing_requests_lower_ttft_and_raise_tpot(stored: Calibration) -> None:
    count = 60
    burst = single_requests(np.zeros(count), np.full(count, 64), np.full(count, 64))
    few, many = (
        wb.whatif.simulate(service(max_ongoing_requests=limit), burst, stored).summary()
        for limit in (8, 32)
    )
    assert many.mean_ttft_ms < few.mean_ttft_ms
    assert many.mean_tpot_ms > few.mean_tpot_ms


def test_answer_11_independent_requests_need_fewer_replicas(stored: Calibration) -> None:
    def cheapest(burstiness: float) -> float:
        load = wb.LoadSpec(
            arrivals=wb.Gamma(rate=0.2, burstiness=burstiness),
            prompts=wb.RandomPrompts(input=64, output=64),
            duration_s=7200,
        )
        grid: dict[str, list[Any]] = {
            "target_ongoing_requests": [0.5, 1, 4],
            "max_replicas": [1, 2, 4],
        }
        spec = service(max_ongoing_requests=8, upscale_delay_s=0)
        table = wb.whatif.sweep(spec, load, stored, grid, slo=wb.SLO(ttft_ms=500))
        enough = table[table.slo_attainment >= 0.9]
        return float(enough.replica_seconds.min())

    assert cheapest(1.0) < cheapest(0.05)
