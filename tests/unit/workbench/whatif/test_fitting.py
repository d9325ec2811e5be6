"""Calibration: constants are recovered from runs with known ones, and every fault is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.whatif import calibration, requests, service

import workbench as wb
from workbench.errors import SettingError
from workbench.records import ReplicaSample
from workbench.runs.run import Run
from workbench.whatif.fitting import calibrate
from workbench.whatif.loads import engine_limits, loads_for
from workbench.whatif.simulator import simulate

TRUTH = {
    "step_s": 0.008,
    "prefill_token_s": 3e-5,
    "running_s": 2e-4,
    "kv_token_s": 1.5e-7,
    "request_s": 0.003,
    "token_s": 5e-5,
}
ENGINE = {
    "kv_blocks": 8192,
    "block_size": 16,
    "max_num_batched_tokens": 2048,
    "max_num_seqs": 128,
}
SPEC = service(max_ongoing_requests=64, max_queued_requests=8192)


def simulated_run(root: Path, name: str, load: wb.LoadSpec, **engine: Any) -> Run:
    """A run whose requests come from a replica with known constants."""
    run = Run.create(root, {"engine": ENGINE | engine, "seed": 0}, run_id=name)
    for record in simulate(SPEC, load, calibration(**TRUTH, **ENGINE)).records():
        run.append_request(record)
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    root = tmp_path_factory.mktemp("runs")
    found = []
    for name, load in loads_for(SPEC.model, 1024).items():
        count = {"one_stream": 40}.get(name, 400)
        shorter = load.model_copy(update={"count": count})
        found.append(simulated_run(root, name, shorter))
    return found


def test_known_constants_are_recovered(runs: list[Run]) -> None:
    found = calibrate(runs)
    assert found.step_s == pytest.approx(TRUTH["step_s"], rel=0.03)
    assert found.running_s == pytest.approx(TRUTH["running_s"], rel=0.05)
    assert found.kv_token_s == pytest.approx(TRUTH["kv_token_s"], rel=0.05)
    read_s = found.prefill_token_s + found.prompt_token_s
    assert read_s == pytest.approx(TRUTH["prefill_token_s"], rel=0.1)
    assert found.fit is not None
    assert found.fit.r_squared > 0.99
    assert found.fit.median_error < 0.02
    assert found.marks == ()


def test_a_load_that_was_not_used_for_the_fit_is_predicted(runs: list[Run]) -> None:
    load = wb.LoadSpec(
        arrivals=wb.Poisson(rate=12),
        prompts=wb.RandomPrompts(input=200, output=wb.Uniform(low=50, high=150)),
        duration_s=120,
    )
    expected = simulate(SPEC, load, calibration(**TRUTH, **ENGINE)).summary()
    found = simulate(SPEC, load, calibrate(runs)).summary()
    for figure in ("mean_e2el_ms", "mean_tpot_ms", "p99_e2el_ms", "mean_ttft_ms"):
        assert found.figure(figure) == pytest.approx(expected.figure(figure), rel=0.05), figure


def test_the_range_of_the_runs_is_kept(runs: list[Run]) -> None:
    found = calibrate(runs)
    records = [record for run in runs for record in run.records()]
    lengths = [record.prompt_tokens for record in records if record.prompt_tokens]
    assert (found.seen["prompt_tokens"].low, found.seen["prompt_tokens"].high) == (
        min(lengths),
        max(lengths),
    )
    assert 1 < found.seen["running"].high <= 64


def test_a_prediction_outside_the_range_is_marked(runs: list[Run]) -> None:
    found = calibrate(runs)
    inside = simulate(SPEC, requests((0.0, 100, 20)), found)
    assert inside.marks == ()
    beyond = simulate(SPEC, requests((0.0, 5000, 20)), found)
    assert len(beyond.marks) == 1
    assert "prompt_tokens from 5000 to 5000 is outside the calibrated range" in beyond.marks[0]
    assert beyond.marks[0] in beyond.headline()
    assert "doubtful" not in inside.headline()


def test_a_calibration_of_something_else_is_marked(runs: list[Run]) -> None:
    found = calibrate(runs)
    other = found.model_copy(
        update={
            "model": "another",
            "versions": found.versions | {"ray": "1.0"},
            "hardware": {"gpus": ["NVIDIA A100, 81920 MiB"]},
            "device": "NVIDIA A100",
        }
    )
    (model, device, version) = simulate(SPEC, requests((0.0, 100, 20)), other).marks
    assert "model 'another'" in model
    assert "NVIDIA A100, not of a cpu" in device
    assert "ray 1.0, not " in version


def test_a_file_is_read_as_it_was_written(runs: list[Run], tmp_path: Path) -> None:
    found = calibrate(runs)
    assert wb.whatif.Calibration.load(found.save(tmp_path / "here.json")) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [("{}", "Calibration.model is required"), ("nothing", "is not a calibration")],
)
def test_a_file_that_is_no_calibration_is_named(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "here.json"
    file.write_text(text)
    with pytest.raises(SettingError, match=message):
        wb.whatif.Calibration.load(file)
    with pytest.raises(SettingError, match="cannot be read"):
        wb.whatif.Calibration.load(tmp_path / "missing.json")


def test_too_few_points_are_named(tmp_path: Path) -> None:
    load = wb.LoadSpec(
        arrivals=wb.ClosedLoop(max_concurrency=1),
        prompts=wb.RandomPrompts(input=20, output=20),
        count=6,
    )
    found = calibrate([simulated_run(tmp_path, "short", load)])
    assert any("fewer than 50" in mark for mark in found.marks)
    assert any("do not determine" in mark for mark in found.marks)
    one = load.model_copy(update={"count": 1})
    with pytest.raises(SettingError, match="at least 7 measured times, got 2"):
        calibrate([simulated_run(tmp_path, "shorter", one)])


def test_a_poor_fit_is_named(runs: list[Run], tmp_path: Path) -> None:
    noisy = Run.create(tmp_path, {"engine": ENGINE}, run_id="noisy")
    for number, record in enumerate(runs[0].records()):
        # Every second request of the one stream is answered ten times as fast.
        sent, share = record.sent_s or 0.0, 0.1 if number % 2 else 1.0
        times = tuple(sent + share * (at_s - sent) for at_s in record.token_times_s)
        noisy.append_request(replace(record, token_times_s=times, end_s=times[-1]))
    assert any("fit is poor" in mark for mark in calibrate([noisy]).marks)


def test_runs_of_two_kinds_are_refused(runs: list[Run], tmp_path: Path) -> None:
    other = simulated_run(
        tmp_path, "other", loads_for(SPEC.model, 512)["one_stream"].model_copy(update={"count": 9})
    )
    other.document = {**other.document, "versions": other.document["versions"] | {"ray": "1.0"}}
    with pytest.raises(SettingError, match=r"several versions of ray: 1\.0, "):
        calibrate([*runs, other])
    with pytest.raises(SettingError, match="runs is empty"):
        calibrate([])


def test_an_unknown_limit_of_the_engine_is_named(runs: list[Run], tmp_path: Path) -> None:
    bare = Run.create(tmp_path, {}, run_id="bare")
    for record in runs[0].records():
        bare.append_request(record)
    with pytest.raises(SettingError, match="kv_blocks is missing"):
        calibrate([bare])
    assert calibrate([bare], **ENGINE).kv_blocks == ENGINE["kv_blocks"]


def test_starts_and_stops_are_taken_from_telemetry(runs: list[Run], tmp_path: Path) -> None:
    run = Run.create(tmp_path, {"engine": ENGINE}, run_id="scaled")
    for record in runs[1].records():
        run.append_request(record)
    states = ["starting"] * 12 + ["running"] * 20 + ["stopping"] * 4
    for time_s, state in enumerate(states):
        sample = ReplicaSample(
            time_s=float(time_s), deployment="m", replica="r", node="n", state=state
        )
        run.append_telemetry(sample)
    found = calibrate([run])
    assert (found.start_s, found.stop_s) == ((12,), (3,))


def test_a_service_without_a_measured_start_is_marked(runs: list[Run]) -> None:
    spec = service(max_replicas=2)
    (mark,) = simulate(spec, requests((0.0, 100, 20)), calibrate(runs)).marks
    assert "no start times" in mark


def test_the_limits_of_a_step_are_those_of_the_spec_or_of_the_device() -> None:
    cpu, gpu = wb.ModelSpec(), wb.ModelSpec(accelerator="gpu")
    assert list(engine_limits(cpu, {}).values()) == [2048, 128]
    h100 = {"gpus": ["NVIDIA H100 80GB HBM3, 81559 MiB"]}
    assert list(engine_limits(gpu, h100).values()) == [8192, 1024]
    l4 = {"gpus": ["NVIDIA L4, 23034 MiB"]}
    assert list(engine_limits(gpu, l4).values()) == [2048, 256]
    own = wb.ModelSpec(engine_kwargs={"max_num_seqs": 7})
    assert engine_limits(own, {})["max_num_seqs"] == 7
