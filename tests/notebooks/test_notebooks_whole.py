"""Complete notebooks with short loads, executed by the command that a user would type."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support.executed_notebook import output_text
from support.paths import ROOT

from workbench.claims.claim import read_verdicts
from workbench.claims.table import archive, read_archived
from workbench.runs.run import Run

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1800)]
VARIANTS = ("split", "colocated")
FEW: dict[str, Any] = {"input_tokens": 16, "output_tokens": 16}
GIVEN: dict[str, dict[str, Any]] = {
    "03": {"requests": 8, "output_tokens": 16, "labelled": 24},
    "04": {
        "prompts": 6,
        "sampled": 2,
        "repeats": 1,
        "batch_size": 4,
        "lengths": {"input": [8, 16], "output": [200, 400]},
        "baselines": ["static"],
    },
    "05": {
        "users": {"low": 4, "high": 8, "think_s": 0.5, "probe_s": 6.0},
        "lengths": {"input": [8, 16], "output": [4, 16]},
        # A probe lasts long enough for four answers that each take all of these bounds.
        "slo": {"ttft_ms": 8_000, "tpot_ms": 500, "target": 0.5},
        "repeats": 1,
        "day": {"peak_rate": 3.0, "seconds": 8.0, "days": 1, "night": 0.2},
        "fleet": {"replicas": 1, "target_ongoing_requests": 2, "premium": 1.0},
        "prices": {"cpu_hour": 3600.0},  # a dollar a replica-second
    },
    "06": FEW | {"requests": 8, "concurrencies": [4], "layouts": [[2, 1], [1, 2]]},
    "07": {"rate": 40.0, "duration_s": 5.0, "output_tokens": 64},
    "09": FEW | {"low_rate": 1.0, "high_rate": 3.0, "low_s": 2.0, "high_s": 6.0, "ttft_ms": 5000},
    "10": {"students": 2},
    "12": {
        # vLLM takes no more sequences than tokens in a step, so 8 sequences do not start with 4.
        "settings": {"max_num_seqs": [8, 2], "max_num_batched_tokens": [None, 4]},
        "concurrencies": [4],
        "slo": {"ttft_ms": 20_000, "tpot_ms": 5_000, "target": 0.5},
        "prefix_tokens": 16,
        "input_tokens": 32,
        "output_tokens": 8,
        "duration_s": 1.0,
        "budget_min": 14.0,
    },
}
TRACE = "Timestamp,Request tokens,Response tokens\n0,12,6\n1,30,9\n2,8,4\n"
Finished = Callable[..., tuple[Path, Path]]


@pytest.fixture
def finished(tmp_path: Path) -> Finished:
    """Return a function that runs a notebook and returns its run folder and executed file."""
    trace = tmp_path / "trace.csv"
    trace.write_text(TRACE)
    own = {"04": {"trace": str(trace)}}

    def run(number: str, run_id: str = "", **more: Any) -> tuple[Path, Path]:
        run_id = run_id or number
        parameters = tmp_path / f"{run_id}.yaml"
        given = GIVEN[number] | own.get(number, {}) | {"port": 0} | more
        parameters.write_text(json.dumps(given))
        options = ["-f", str(parameters), "--runs", str(tmp_path), "--run-id", run_id]
        command = [sys.executable, "-m", "workbench", "run", number, *options]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1700)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        (executed,) = (tmp_path / run_id).glob("*.ipynb")
        return tmp_path / run_id, executed

    return run


def report_of(run: Run) -> str:
    """Return the run's HTML page, which must contain the command that repeats it."""
    report = (run.path / "report.html").read_text()
    assert "python -m workbench repeat" in report
    return report


def test_notebook_03_redacts_routes_and_computes_the_saving(finished: Finished) -> None:
    folder, executed = finished("03")
    run = Run.open(folder)
    records = list(run.records())
    assert [record.status for record in records] == ["ok"] * 8
    # Every other prompt is longer than the rule's bound.
    assert sorted(str(record.model) for record in records) == ["large"] * 4 + ["small"] * 4
    for record in records:
        assert record.stages is not None
        assert {"guardrail_in", "route", "prefill", "decode"} <= set(record.stages)
    outputs = output_text(executed)
    assert "I am <BADGE>, <EMAIL_ADDRESS>. What is a KV cache?" in outputs
    assert "CREDIT_CARD" in outputs, "a card number was rejected"
    saving = re.search(r"the router saved (\d+)%", outputs)
    assert saving is not None
    tokens = {"large": 0, "small": 0}
    for record in records:
        tokens[str(record.model)] += (record.prompt_tokens or 0) + (record.output_tokens or 0)
    saved = 0.7 * tokens["small"] / sum(tokens.values())  # at 0.3 of the price
    assert int(saving[1]) == pytest.approx(100 * saved, abs=1)
    assert "One request" in report_of(run)


def test_notebook_04_decides_nothing_from_one_repeat(finished: Finished) -> None:
    folder, executed = finished("04")
    run = Run.open(folder)
    verdicts = read_verdicts(run.path)
    assert {verdict.verdict for verdict in verdicts} == {"not decided"}
    assert len(verdicts) == 8, "four opponents, mixed lengths and the trace's"
    measured = [verdict for verdict in verdicts if verdict.ratio is not None]
    assert [verdict.repeats for verdict in measured] == [1, 1]
    assert all("1 of at least 3 repeats" in verdict.reason for verdict in measured)
    assert all("not measured" in verdict.reason for verdict in verdicts if verdict.ratio is None)
    assert len(list((run.path / "repeats").iterdir())) == 4
    assert run.summary() is not None
    report_of(run)
    outputs = json.dumps(json.loads(executed.read_text()))
    match = re.search(r"reports ([0-9.]+) times the slots that the requests explain", outputs)
    assert match is not None
    assert 0.5 < float(match[1]) < 2
    assert executed.stat().st_size < 12e6


def test_notebook_05_reports_the_sums_over_its_files(finished: Finished, tmp_path: Path) -> None:
    folder, _ = finished("05")
    run = Run.open(folder)
    *others, cost = read_verdicts(run.path)
    (users,) = (
        verdict for verdict in others if verdict.opponent == "transformers, static batches of 32"
    )
    unmeasured = [verdict for verdict in others if verdict is not users]
    assert (users.ours, users.theirs) == (8, 8)  # the bounds are so wide that both hold all
    assert "1 of at least 3 repeats" in users.reason
    assert {verdict.verdict for verdict in (users, *unmeasured, cost)} == {"not decided"}
    assert len(unmeasured) == 3
    for name in ("fixed", "autoscaled"):
        dollars = check_fleet(run.path / "fleets" / name)
        # One replica, held all day, at a dollar a second. A day has eight seconds.
        assert 0 < dollars < 8.4
    (archived,) = read_archived([archive(run.path, tmp_path / "archive").parent])
    assert archived.summary is not None
    assert archived.summary["cost"]["dollars"] > 0
    assert "Users that each engine can serve" in report_of(run)


def check_fleet(folder: Path) -> float:
    """Compare the cost in a fleet's summary with sums over its files; return the dollars."""
    lines = [json.loads(line) for line in (folder / "telemetry.jsonl").open()]
    cost = json.loads((folder / "summary.json").read_text())["cost"]
    records = [json.loads(line) for line in (folder / "requests.jsonl").open()]
    good = [
        record
        for record in records
        if record["status"] == "ok" and within(record, GIVEN["05"]["slo"])
    ]
    assert cost["input_tokens"] == sum(record["prompt_tokens"] for record in good)
    assert cost["output_tokens"] == sum(record["output_tokens"] for record in good)
    held = [
        line for line in lines if line["kind"] == "deployment" and line["deployment"] != "router"
    ]
    times = [line["time_s"] for line in held]
    first = max(times[0], min(record["scheduled_s"] for record in records))
    # The day ends; the last answers may take longer.
    watched_s = min(times[-1] - first, GIVEN["05"]["day"]["seconds"])
    assert cost["held_s"] == pytest.approx(watched_s, abs=1.5)
    assert cost["dollars"] == pytest.approx(cost["held_s"])
    assert cost["busy_s"] + cost["idle_s"] > 0  # the engines reported their requests
    assert cost["per_million_tokens"] == pytest.approx(
        cost["dollars"] / (cost["input_tokens"] + cost["output_tokens"]) * 1e6
    )
    return float(cost["dollars"])


def within(record: dict[str, Any], slo: dict[str, float]) -> bool:
    """Return whether TTFT and TPOT, as vLLM defines them, are within the bounds."""
    ttft_s = record["first_token_s"] - record["sent_s"]
    tpot_s = (record["end_s"] - record["first_token_s"]) / max(1, record["output_tokens"] - 1)
    return 1e3 * ttft_s <= slo["ttft_ms"] and 1e3 * tpot_s <= slo["tpot_ms"]


def test_notebook_06_measures_each_layout_and_both_variants(
    finished: Finished, tmp_path: Path
) -> None:
    storage = tmp_path / "kv"
    storage.mkdir()
    # Long enough for some samples of the engines, which come with the metrics.
    apart = {"rates": [2.0], "duration_s": 10.0, "input_tokens": 160, "output_tokens": 8}
    apart["connector_options"] = {"shared_storage_path": str(storage)}
    folder, executed = finished("06", disaggregated=apart)
    run = Run.open(folder)
    parts = sorted((run.path / "layouts").iterdir())
    assert [part.name for part in parts] == ["TP1x2-at-4", "TP2x1-at-4"]
    for part in parts:
        summary = Run.open(part).summary()
        assert summary is not None
        assert (summary.completed, summary.failed) == (8, 0)
    p95 = {name: check_variant(run.path / "disaggregated" / f"{name}-at-2-1") for name in VARIANTS}
    plans = {plan.read_bytes() for plan in run.path.glob("disaggregated/*/plan.json")}
    assert len(plans) == 1, "both variants get the same load"
    split = Run.open(run.path / "disaggregated" / "split-at-2-1")
    replicas = split.samples_frame("replica")
    read = replicas.groupby("deployment").prompt_tokens.max()
    assert read["tiny-llama-glossary-prefill"] > 0
    assert saved_blocks(storage) >= len(list(split.records()))
    reported = re.search(
        r"p95 TTFT was (\S+) (ms|s) with split replicas and (\S+) (ms|s) ", output_text(executed)
    )
    assert reported is not None
    scale = {"ms": 1.0, "s": 1e3}
    for value, unit, name in (
        (*reported.groups()[:2], "split"),
        (*reported.groups()[2:], "colocated"),
    ):
        assert float(value) * scale[unit] == pytest.approx(p95[name], rel=0.01)
    assert "Disaggregated prefill and decode" in report_of(run)


def check_variant(folder: Path) -> float:
    """Check that every long prompt was answered; return the 95th percentile of TTFT in ms."""
    records = list(Run.open(folder).records())
    assert {record.status for record in records} == {"ok"}
    assert all((record.prompt_tokens or 0) >= 160 for record in records)
    ttfts = [1e3 * (r.first_token_s - r.sent_s) for r in records if r.first_token_s and r.sent_s]
    return float(np.percentile(ttfts, 95))


def saved_blocks(storage: Path) -> int:
    """Return for how many sequences the example connector saved tokens of the KV cache."""
    from safetensors.torch import load_file  # imports torch, which takes seconds

    files = storage.glob("*/*.safetensors")
    return len({file.parent for file in files if load_file(file)["kv_cache"].numel()})


def test_notebook_07_admits_everything_then_only_what_fits(finished: Finished) -> None:
    folder, executed = finished("07")
    run = Run.open(folder)
    sides = {name: Run.open(run.path / "sides" / name) for name in ("unlimited", "finite")}
    plans = {(side.path / "plan.json").read_bytes() for side in sides.values()}
    assert len(plans) == 1, "both sides get the same load"
    statuses = {
        name: pd.Series([record.status for record in side.records()]).value_counts()
        for name, side in sides.items()
    }
    assert statuses["unlimited"].get("shed", 0) == 0
    assert statuses["finite"]["shed"] > 0
    assert statuses["finite"]["ok"] >= 12, "requests within the limit are answered"
    outputs = output_text(executed)
    assert "Rate limit reached for ada: 20 requests per minute" in outputs
    assert "3 answered after" in outputs
    assert "retry-after" in outputs
    assert "Back-pressure" in report_of(run)


def test_notebook_09_sends_the_same_load_under_every_policy(finished: Finished) -> None:
    folder, executed = finished("09")
    run = Run.open(folder)
    names = ["requests", "engine-pressure", "TTFT"]
    runs = [Run.open(run.path / "policies" / name) for name in names]
    plans = {(policy_run.path / "plan.json").read_bytes() for policy_run in runs}
    assert len(plans) == 1
    counts = [len(list(policy_run.records())) for policy_run in runs]
    assert len(set(counts)) == 1
    assert len(list(run.records())) == sum(counts)
    for policy_run in runs:
        assert {record.status for record in policy_run.records()} == {"ok"}
        reports = policy_run.samples_frame().query("deployment == 'tiny-llama-glossary'")
        assert reports.desired.notna().any(), "the policy reported what it requests"
        assert policy_run.samples_frame("replica").kv_cache_usage.notna().any()
    outputs = output_text(executed)
    assert all(name in outputs for name in ("engine pressure", "p99 TTFT", "Replica-seconds"))
    report_of(run)


def test_notebook_10_enforces_the_cap_and_stops_a_student(finished: Finished) -> None:
    _, executed = finished("10")
    outputs = output_text(executed)
    assert "serves tiny-llama-glossary" in outputs
    assert "tenant 'student-01': max_replicas must be at most 1, got 2" in outputs
    assert "student-01: stopped by the instructor" in outputs
    assert "student-02" in outputs


def test_notebook_12_measures_what_starts_and_continues(finished: Finished) -> None:
    folder, executed = finished("12")
    tuning = folder / "tuning"
    trials = [json.loads(file.read_text()) for file in sorted((tuning / "trials").iterdir())]
    outcomes = {
        (trial["rung"], *trial["configuration"]["settings"].values()): trial for trial in trials
    }
    failure = outcomes.pop((0, 8, 4))["failure"]
    assert "max_num_seqs" in failure
    assert "max_num_batched_tokens" in failure
    assert {(0, 8, None), (0, 2, None), (1, 8, None)} <= outcomes.keys()
    for trial in outcomes.values():
        assert [point["summary"]["failed"] for point in trial["points"]] == [0, 0, 0]
        assert all(point["summary"]["slo_attainment"] > 0.5 for point in trial["points"])
    runs = {path.name for path in (tuning / "runs").iterdir()}
    assert len(runs) == sum(len(trial["points"]) for trial in outcomes.values())
    outputs = output_text(executed)
    assert "requests/s within the SLO" in outputs
    assert "failed: " in outputs
    assert "Frontier" in report_of(Run.open(folder))

    _, again = finished("12", "continued", continue_in=str(tuning))
    assert {path.name for path in (tuning / "runs").iterdir()} == runs
    outputs = output_text(again)
    assert outputs.count("already measured") == len(trials)
    assert "starting Ray Serve" not in outputs, "nothing was deployed"
