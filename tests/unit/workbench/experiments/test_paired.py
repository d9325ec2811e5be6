"""Paired comparisons of made-up summaries: pairs, caveats, notes, verdicts and figures."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr
from support.records import failed, record

from serving.spec.baseline import OneAtATime
from workbench.claims.claim import Claim, RunInfo
from workbench.endpoints.remote import Remote
from workbench.errors import SettingError, TraceError
from workbench.experiments.paired import (
    BASELINE,
    CANDIDATE,
    Measurement,
    PairedComparison,
    evaluate_claims,
    measurements_frame,
)
from workbench.experiments.paired_runner import compare_with_baseline, load_from_trace
from workbench.figures.claims import paired_comparison_figure, ratio_figure
from workbench.metrics.health import ClientHealth
from workbench.metrics.summary import summarize
from workbench.runs.run import Run
from workbench.workload.arrivals import ClosedLoop
from workbench.workload.prompts import RandomPrompts
from workbench.workload.spec import LoadSpec, make_plan

CLAIM = Claim(name="2x the throughput", figure="output tokens/s", goal=2)
WHERE = RunInfo(run_id="r", date="2026-01-31", hardware="a CPU", accelerator="cpu")


def measured(side: str, repeat: int, seconds: float, **more: Any) -> Measurement:
    """A measurement of ten tokens in `seconds`."""
    times = [seconds * (i + 1) / 10 for i in range(10)]
    health = ClientHealth.judge(cpu_share=more.pop("cpu_share", 0.1))
    summary = summarize([record(0.0, *times)], health=health)
    return Measurement(side, repeat, summary, None, **more)  # type: ignore[arg-type]


def compared(*seconds: tuple[float, float], **more: Any) -> PairedComparison:
    """Repeats of (candidate, baseline); the baseline comes first in every second one."""
    comparison = PairedComparison("static")
    for repeat, pair in enumerate(seconds):
        both = [measured(CANDIDATE, repeat, pair[0], **more), measured(BASELINE, repeat, pair[1])]
        comparison.measured += both if repeat % 2 == 0 else both[::-1]
    return comparison


def test_an_unknown_side_is_rejected() -> None:
    with pytest.raises(SettingError, match="side must be 'candidate' or 'baseline', got 'ours'"):
        compared((1, 2)).side("ours")


def test_pairs_are_of_the_same_repeat_in_any_order() -> None:
    comparison = compared((1, 2), (2, 4), (1, 3))
    pairs = comparison.pairs()
    assert [ours for ours, _ in pairs] == pytest.approx([10, 5, 10])
    assert [theirs for _, theirs in pairs] == pytest.approx([5, 2.5, 10 / 3])
    comparison.measured = [m for m in comparison.measured if (m.side, m.repeat) != (BASELINE, 1)]
    assert len(comparison.pairs()) == 2
    assert comparison.caveats() == []


def test_every_opponent_has_a_verdict_measured_or_not() -> None:
    rng = np.random.default_rng(0)
    verdicts = evaluate_claims(
        CLAIM, [compared((1, 3), (1, 3), (1, 3))], ["static", "one"], where=WHERE, rng=rng
    )
    assert [(verdict.opponent, verdict.verdict) for verdict in verdicts] == [
        ("static", "PASS"),
        ("one", "not decided"),
    ]
    assert verdicts[0].ratio == pytest.approx(3)
    assert "this baseline was not measured" in verdicts[1].reason


@pytest.mark.parametrize(
    ("comparison", "reason"),
    [
        (compared((1, 3), (1, 3)), "2 of at least 3 repeats"),
        (compared(*[(1, 3)] * 3, cpu_share=0.99), "client limited in 3 of 6 measurements (cpu_sh"),
        (compared(*[(1, 3)] * 3, failures=("error: x",)), "3 requests to vLLM failed (error: x)"),
        (
            PairedComparison("static", broken="the baseline did not start: y"),
            "did not start: y; 0 of",
        ),
    ],
)
def test_a_caveat_blocks_the_verdict(comparison: PairedComparison, reason: str) -> None:
    rng = np.random.default_rng(0)
    (verdict,) = evaluate_claims(CLAIM, [comparison], ["static"], where=WHERE, rng=rng)
    assert verdict.verdict == "not decided"
    assert reason in verdict.reason


def test_running_out_of_memory_is_a_note() -> None:
    comparison = compared(*[(1, 3)] * 3)
    comparison.stats = {"out_of_memory": [{"batch_size": 64, "tokens_a_row": 596}]}
    rng = np.random.default_rng(0)
    (verdict,) = evaluate_claims(CLAIM, [comparison], [], where=WHERE, rng=rng)
    assert verdict.verdict == "PASS"
    assert "ran out of memory at batch size 64 with 596 tokens per row" in verdict.notes[0]


def test_figures_show_every_repeat_and_every_ratio() -> None:
    comparison = compared((1, 3), (1, 3), (1, 3))
    drawn = paired_comparison_figure([comparison, PairedComparison("one", broken="x")])
    assert [list(trace.x) for trace in drawn.data] == [[10] * 3, pytest.approx([10 / 3] * 3)]
    rng = np.random.default_rng(0)
    ratios = ratio_figure(evaluate_claims(CLAIM, [comparison], ["one"], where=WHERE, rng=rng))
    assert [list(trace.y) for trace in ratios.data] == [["static"]]
    assert len(measurements_frame([comparison])) == 6
    limited = paired_comparison_figure([compared((1, 3), cpu_share=0.99)])
    assert "CLIENT LIMITED" in limited.layout.title.text
    assert failed("error").status == "error"


def test_lengths_of_a_trace_are_sent_within_two_seconds(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    rows = [(0, 20, 5), (40, 30, 6), (100, 25, 7), (200, 10, 9)]
    lines = ["Timestamp,Request tokens,Response tokens", *(f"{a},{b},{c}" for a, b, c in rows)]
    file.write_text("\n".join(lines) + "\n")
    load = LoadSpec(
        arrivals=ClosedLoop(max_concurrency=3), prompts=RandomPrompts(input=4, output=4), count=3
    )
    made = make_plan(load_from_trace(load, str(file)), SimpleNamespace(regular_token_ids=range(9)))
    assert [session.at_s for session in made] == pytest.approx([0, 0.8, 2.0])
    turns = [session.turns[0] for session in made]
    assert [(turn.prompt_tokens, turn.max_tokens) for turn in turns] == [(20, 5), (30, 6), (25, 7)]
    with pytest.raises(TraceError, match="cannot be read"):
        load_from_trace(load, str(tmp_path / "none.csv"))


def test_fields_of_the_replay_apply_to_the_lengths_of_a_trace(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    rows = [{"timestamp": t, "input_length": 20, "output_length": 5} for t in (0, 400, 1000)]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    load = LoadSpec(
        arrivals=ClosedLoop(max_concurrency=3), prompts=RandomPrompts(input=4, output=4), count=3
    )
    with pytest.raises(TraceError, match="time_unit"):
        load_from_trace(load, str(file))
    tokenizer = SimpleNamespace(regular_token_ids=range(9))
    for unit, times in (("ms", [0, 0.4, 1.0]), ("s", [0, 0.8, 2.0])):
        made = make_plan(load_from_trace(load, str(file), time_unit=unit), tokenizer)
        assert [session.at_s for session in made] == pytest.approx(times)


def test_a_foreign_endpoint_has_no_baseline(tmp_path: Path) -> None:
    run = Run.create(tmp_path, {"notebook": "04"}, run_id="r")
    elsewhere = Remote("http://there/v1", SecretStr("x"), ["m"], "m")
    comparison = compare_with_baseline(elsewhere, OneAtATime(), {}, repeats=3, run=run)
    with pytest.raises(SettingError, match="http://there/v1 was not deployed by this process"):
        asyncio.run(comparison)


def test_each_measurement_is_a_run_with_a_plain_name(tmp_path: Path) -> None:
    from workbench.experiments.paired_runner import _folder

    run = Run.create(tmp_path, {"notebook": "04"}, run_id="r")
    load = LoadSpec(arrivals=ClosedLoop(max_concurrency=1), count=1)
    made = _folder(run, "mixed-one at a time", 0, CANDIDATE, "one", load)
    assert made.path == tmp_path / "r" / "repeats" / "mixed-one-at-a-time-0-candidate"
    assert made.experiment["opponent"] == "one"
