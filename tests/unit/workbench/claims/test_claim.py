"""Verdicts worked by hand: three values' interval is their range (see test_intervals)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from workbench.claims.claim import (
    Claim,
    Verdict,
    Where,
    evaluate_claim,
    hardware_label,
    read_verdicts,
    where,
    write_verdicts,
)
from workbench.errors import RunError
from workbench.runs.run import Run

CLAIM = Claim(name="24x the throughput", figure="output tokens/s", goal=24)
WHERE = Where(run_id="r", date="2026-01-31", hardware="a CPU", accelerator="cpu")


def judged(*pairs: tuple[float, float], doubts: tuple[str, ...] = ()) -> Verdict:
    rng = np.random.default_rng(0)
    return evaluate_claim(CLAIM, "one at a time", pairs, where=WHERE, rng=rng, doubts=doubts)


def test_pass_needs_the_whole_interval_at_or_above_the_goal() -> None:
    found = judged((2400, 100), (2500, 100), (2600, 100))
    assert found.verdict == "PASS"
    assert (found.low, found.high) == pytest.approx((24, 26))
    assert found.ratio == pytest.approx((24 * 25 * 26) ** (1 / 3))
    assert (found.ours, found.theirs, found.repeats) == (2500, 100, 3)
    assert found.reason == "25x (24 to 26) is at least 24x"


def test_fail_needs_the_whole_interval_below() -> None:
    found = judged((100, 100), (200, 100), (2399, 100))
    assert found.verdict == "FAIL"
    assert found.high == pytest.approx(23.99)
    assert "below 24x" in found.reason


def test_a_goal_inside_the_interval_is_not_decided() -> None:
    found = judged((2300, 100), (2500, 100), (2600, 100))
    assert found.verdict == "not decided"
    assert "24x inside its interval" in found.reason


def test_two_repeats_decide_nothing_and_have_no_interval() -> None:
    found = judged((1, 100), (1, 100))
    assert (found.verdict, found.reason) == ("not decided", "2 of at least 3 repeats")
    assert found.ratio == pytest.approx(0.01)
    assert (found.low, found.high) == (None, None)


def test_a_doubt_stands_beside_the_figures_and_no_word_is_given() -> None:
    found = judged((1, 100), (1, 100), (1, 100), doubts=("client limited: cpu_share",))
    assert (found.verdict, found.reason) == ("not decided", "client limited: cpu_share")
    assert found.high == pytest.approx(0.01)


def test_a_missing_opponent_has_no_figures() -> None:
    found = judged(doubts=("the baseline was not measured",))
    assert found.verdict == "not decided"
    assert found.reason == "the baseline was not measured; 0 of at least 3 repeats"
    assert found.ours is found.theirs is found.ratio is None


def test_nothing_measured_on_one_side_has_no_ratio() -> None:
    found = judged((100, 0), (100, 1), (100, 1))
    assert (found.verdict, found.ratio) == ("not decided", None)
    assert "has no ratio" in found.reason


def test_hardware_in_words() -> None:
    cpu = {"cpu": "Some CPU", "cores": 2, "gpus": []}
    card = "NVIDIA H100 80GB HBM3"
    assert hardware_label(cpu, "cpu") == "Some CPU, 2 cores, no GPU used"
    cards = {**cpu, "gpus": [f"{card}, 81559 MiB"]}
    assert hardware_label(cards, "gpu") == card
    assert hardware_label({**cpu, "gpus": [f"{card}, 81559 MiB"] * 2}, "gpu") == f"2 x {card}"
    assert hardware_label(cards, "cpu") == "Some CPU, 2 cores, no GPU used"


def test_verdicts_are_kept_in_the_runs_folder(tmp_path: Path) -> None:
    run = Run.create(tmp_path, {"notebook": "04_x"}, run_id="one")
    told = where(run, model="tiny", accelerator="cpu")
    kept = judged((1, 1), (1, 1), (2, 1)).model_copy(update={"where": told})
    file = write_verdicts(run, [kept])
    assert json.loads(file.read_text())["verdicts"][0]["where"]["run_id"] == "one"
    assert read_verdicts(run.path) == read_verdicts(file) == (kept,)
    assert told.notebook == "04_x"
    with pytest.raises(RunError, match=r"claims\.json cannot be read"):
        read_verdicts(tmp_path)
    file.write_text('{"verdicts": [{"opponent": "x"}]}')
    with pytest.raises(RunError, match=r"holds no verdicts: .*claim"):
        read_verdicts(run.path)
