"""Benchmarks that measure one side after the other: which side runs, and what is compared."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT


def verdict(benchmark: str, folder: Path, *results: dict[str, Any]) -> dict[str, Any]:
    """Return the last line of a benchmark that compares these figures."""
    files = []
    for number, figures in enumerate(results):
        files.append(folder / f"{number}.json")
        files[-1].write_text("a line before it\n" + json.dumps({"figures": figures}) + "\n")
    command: list[Any] = [
        sys.executable,
        str(ROOT / "benchmarks" / f"{benchmark}.py"),
        "verdict",
        *files,
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr[-2000:]
    line: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return line


def test_a_fleet(tmp_path: Path) -> None:
    line = verdict(
        "fleet",
        tmp_path,
        {"dollars_per_million_fixed": 3.0},
        {"dollars_per_million_autoscaled": 1.2},
    )
    assert line["figures"]["ratio"] == 2.5
    assert line["met"] == {"ratio": True}


def test_half_a_fleet(tmp_path: Path) -> None:
    line = verdict("fleet", tmp_path, {"dollars_per_million_fixed": 3.0})
    assert line["figures"]["ratio"] is None
    assert line["met"] == {"ratio": False}


def test_prefill_and_decode(tmp_path: Path) -> None:
    split = {"median_ttft_ms_0.5_split": 300.0, "median_tpot_ms_0.5_split": 10.0}
    together = {"median_ttft_ms_0.5_colocated": 200.0, "median_tpot_ms_0.5_colocated": 20.0}
    figures = verdict("disaggregated", tmp_path, split, together)["figures"]
    assert (figures["ttft_ratio_0.5"], figures["tpot_ratio_0.5"]) == (1.5, 0.5)


@pytest.mark.parametrize(("router", "met"), [(150.0, True), (250.0, False)])
def test_scaling_out(tmp_path: Path, router: float, met: bool) -> None:
    ours = {"tokens_per_s_ours_1": 100.0, "tokens_per_s_ours_2": 196.0, "ttft_ms_ours_1": 5.0}
    line = verdict("scale_out", tmp_path, ours, {"tokens_per_s_router_2": router})
    assert line["figures"]["efficiency_2"] == 0.98
    assert line["met"] == {"efficiency_2": True, "ratio_to_router": met}
