"""Samples written to a run's folder and read back."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from workbench.errors import UnknownMetricError
from workbench.records import (
    SAMPLE_KINDS,
    DecisionSample,
    DeploymentSample,
    GpuSample,
    ProxySample,
    ReplicaSample,
    Sample,
    columns,
)
from workbench.runs.run import Run

SAMPLES: list[Sample] = [
    DeploymentSample(time_s=1.0, deployment="m", target=2, running=1, starting=1, stopping=0),
    ReplicaSample(time_s=1.0, deployment="m", replica="r1", node="n1", running_requests=3),
    GpuSample(time_s=1.0, node="n1", gpu=0, utilization=0.5, memory_gib=12.25),
    ProxySample(time_s=1.0, node="n1", in_flight=4),
    DecisionSample(
        time_s=2.0, deployment="m", from_target=1, to_target=2, held_by="upscale_delay_s"
    ),
]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run.create(tmp_path, {}, run_id="r")
    for sample in SAMPLES:
        run.append_telemetry(sample)
    return run


def test_line_is_an_object_with_its_kind(run: Run) -> None:
    lines = [json.loads(line) for line in (run.path / "telemetry.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == list(SAMPLE_KINDS)
    assert lines[0] == {
        "kind": "deployment",
        "time_s": 1.0,
        "deployment": "m",
        "target": 2,
        "running": 1,
        "starting": 1,
        "stopping": 0,
        "desired": None,
        "total_requests": None,
        "queued_requests": None,
        "shed": None,
    }


@pytest.mark.parametrize("sample", SAMPLES, ids=list(SAMPLE_KINDS))
def test_frame_of_each_kind(run: Run, sample: Sample) -> None:
    kind = str(type(sample).__struct_config__.tag)
    frame = Run.open(run.path).samples_frame(kind)
    assert list(frame.columns) == columns(kind)
    [row] = frame.to_dict("records")
    expected = msgspec.structs.asdict(sample)
    assert {k: v for k, v in row.items() if v == v and v is not None} == {
        k: v for k, v in expected.items() if v is not None
    }


def test_line_decodes_to_its_type(run: Run) -> None:
    decode = msgspec.json.Decoder(Sample).decode
    assert [decode(line) for line in (run.path / "telemetry.jsonl").read_bytes().splitlines()] == (
        SAMPLES
    )


def test_line_without_a_kind_is_a_deployments(run: Run) -> None:
    run.append_telemetry({"time_s": 3.0, "deployment": "m", "target": 1})
    frame = run.samples_frame()
    assert list(frame.time_s) == [1.0, 3.0]
    assert list(frame.target) == [2, 1]
    assert frame.running.isna().tolist() == [False, True]


def test_frames_of_an_empty_run_have_columns(tmp_path: Path) -> None:
    run = Run.create(tmp_path, {}, run_id="r")
    for kind in SAMPLE_KINDS:
        assert list(run.samples_frame(kind).columns) == columns(kind)


def test_unknown_kind_is_named(run: Run) -> None:
    with pytest.raises(UnknownMetricError, match=r"deployment, replica, gpu.*'engine'"):
        run.samples_frame("engine")
