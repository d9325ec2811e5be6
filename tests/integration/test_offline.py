"""A laptop without a network."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from support.offline import run_offline
from support.paths import ROOT


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(900)
def test_notebook_00_runs_without_a_network(tmp_path: Path) -> None:
    options = ["--profile", "workshop", "--runs", str(tmp_path), "--run-id", "offline"]
    ran = run_offline(
        sys.executable,
        *("-m", "workbench", "run", "00", *options),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=840,
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    assert (tmp_path / "offline" / "summary.json").exists()
