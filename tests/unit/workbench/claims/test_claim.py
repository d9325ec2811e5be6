"""Verdicts worked out by hand. The interval of three values is their range."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from workbench.claims.claim import (
    CLAIMS,
    Claim,
    RunInfo,
    Verdict,
    evaluate_claim,
    hardware_label,
    read_verdicts,
    write_verdicts,
)
from workbench.errors import RunError, SettingError
from workbench.runs.run import Run

CLAIM = Claim(name="24x the throughput", figure="output tokens/s", goal=24)
WHERE = RunInfo(run_id="r", date="2026-01-31", hardware="a CPU", accelerator="cpu")


def evaluated(*pairs: tuple[float, float], caveats: tuple[str, ...] = ()) -> Verdict:
    rng = np.random.default_rng(0)
    return evaluate_claim(CLAIM, "one at a time", pairs, where=WHERE, rng=rng, caveats=caveats)


def test_pass_needs_the_whole_interval_at_or_above_the_goal() -> None:
    verdict = evaluated((2400, 100), (2500, 100), (2600, 100))
    assert verdict.verdict == "PASS"
    assert (verdict.low, verdict.high) == pytest.approx((24, 26))
    assert verdict.ratio == pytest.approx((24 * 25 * 26) ** (1 / 3))
    assert (verdict.ours, verdict.theirs, verdict.repeats) == (2500, 100, 3)
    assert verdict.reason == "25x (24 to 26) is at least 24x"


def test_fail_needs_the_whole_interval_below() -> None:
    verdict = evaluated((100, 100), (200, 100), (2399, 100))
    assert verdict.verdict == "FAIL"
    assert verdict.high == pytest.approx(23.99)
    assert "below 24x" in verdict.reason


def test_a_goal_inside_the_interval_is_not_decided() -> None:
    verdict = evaluated((2300, 100), (2500, 100), (2600, 100))
    assert verdict.verdict == "not decided"
    assert "contains 24x" in verdict.reason


def test_two_repeats_have_no_interval_and_decide_nothing() -> None:
    verdict = evaluated((1, 100), (1, 100))
    assert (verdict.verdict, verdict.reason) == ("not decided", "2 of at least 3 repeats")
    assert verdict.ratio == pytest.approx(0.01)
    assert (verdict.low, verdict.high) == (None, None)


def test_a_caveat_blocks_the_verdict_and_keeps_the_figures() -> None:
    verdict = evaluated((1, 100), (1, 100), (1, 100), caveats=("client limited: cpu_share",))
    assert (verdict.verdict, verdict.reason) == ("not decided", "client limited: cpu_share")
    assert verdict.high == pytest.approx(0.01)


def test_a_missing_opponent_has_no_figures() -> None:
    verdict = evaluated(caveats=("the baseline was not measured",))
    assert verdict.verdict == "not decided"
    assert verdict.reason == "the baseline was not measured; 0 of at least 3 repeats"
    assert verdict.ours is verdict.theirs is verdict.ratio is None


def test_a_side_that_measured_nothing_has_no_ratio() -> None:
    verdict = evaluated((100, 0), (100, 1), (100, 1))
    assert (verdict.verdict, verdict.ratio) == ("not decided", None)
    assert "there is no ratio" in verdict.reason


def test_hardware_in_words() -> None:
    cpu = {"cpu": "Some CPU", "cores": 2, "gpus": []}
    card = "NVIDIA H100 80GB HBM3"
    assert hardware_label(cpu, "cpu") == "Some CPU, 2 cores, no GPU used"
    cards = {**cpu, "gpus": [f"{card}, 81559 MiB"]}
    assert hardware_label(cards, "gpu") == card
    assert hardware_label({**cpu, "gpus": [f"{card}, 81559 MiB"] * 2}, "gpu") == f"2 x {card}"
    assert hardware_label(cards, "cpu") == "Some CPU, 2 cores, no GPU used"


def test_verdicts_are_written_to_the_run_folder(tmp_path: Path) -> None:
    run = Run.create(tmp_path, {"notebook": "04_x"}, run_id="one")
    info = RunInfo.from_run(run, model="tiny", accelerator="cpu")
    verdict = evaluated((1, 1), (1, 1), (2, 1)).model_copy(update={"where": info})
    file = write_verdicts(run, [verdict])
    assert json.loads(file.read_text())["verdicts"][0]["where"]["run_id"] == "one"
    assert read_verdicts(run.path) == read_verdicts(file) == (verdict,)
    assert info.notebook == "04_x"
    with pytest.raises(RunError, match=r"claims\.json cannot be read"):
        read_verdicts(tmp_path)
    file.write_text('{"verdicts": [{"opponent": "x"}]}')
    with pytest.raises(RunError, match=r"does not contain verdicts: .*claim"):
        read_verdicts(run.path)


@pytest.mark.parametrize(
    ("kind", "details", "name", "figure"),
    [
        ("throughput", {"lengths": "mixed"}, "3x the throughput", "output tokens/s, mixed lengths"),
        ("users", {}, "3x the users", "users within the SLO"),
        ("cost", {}, "2-4x less spent", "fewer $ per million tokens within the SLO"),
    ],
)
def test_claims_by_kind(kind: str, details: dict[str, str], name: str, figure: str) -> None:
    claim = Claim.from_kind(kind, goal=3, **details)
    assert (claim.name, claim.figure, claim.goal) == (name, figure, 3)


def test_unknown_claims_and_missing_details() -> None:
    with pytest.raises(SettingError, match="throughput, users, cost, got 'latency'"):
        Claim.from_kind("latency", goal=2)
    with pytest.raises(SettingError, match="needs lengths"):
        Claim.from_kind("throughput", goal=2)
    assert set(CLAIMS) == {"throughput", "users", "cost"}
