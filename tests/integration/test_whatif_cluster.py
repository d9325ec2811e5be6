"""A sweep as tasks of a Ray cluster."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.paths import ROOT

SWEEP = """
import ray
import pandas as pd
from support.whatif import calibration, requests, service
from workbench.whatif.sweeps import sweep

load = requests(*[(0.3 * number, 8, 20) for number in range(200)])
grid = {"target_ongoing_requests": [1, 2, 4], "max_replicas": [1, 2, 4]}
here = sweep(service(), load, calibration(), grid, parallel="off")
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
there = sweep(service(), load, calibration(), grid, parallel="ray", progress="lines")
pd.testing.assert_frame_equal(here, there)
ray.shutdown()
print("EQUAL")
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_sweep_on_a_cluster_gives_the_table_of_this_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SWEEP],
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "9 of 9 settings simulated" in done.stdout
    assert done.stdout.endswith("EQUAL\n")
