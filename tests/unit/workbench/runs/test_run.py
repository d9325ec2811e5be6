"""The folder of a run, against the json module of the standard library."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel, SecretStr
from support.records import record

from workbench.errors import RunError
from workbench.metrics.health import ClientHealth
from workbench.metrics.summary import summarize
from workbench.records import LoadChange, RequestRecord
from workbench.runs.run import Run

RECORD = RequestRecord(
    request_id="r-1",
    scheduled_s=0.5,
    sent_s=0.5000004,
    first_token_s=0.75,
    end_s=1.25,
    token_times_s=(0.75, 1.0000011, 1.25),
    prompt_tokens=10,
    output_tokens=3,
    status="ok",
    error=None,
    model="m",
    tenant=None,
)
SHED = dataclasses.replace(
    RECORD,
    request_id="r-2",
    first_token_s=None,
    token_times_s=(),
    prompt_tokens=None,
    output_tokens=None,
    status="shed",
    error="RateLimitError: HTTP 429: busy",
)


def filled(root: Path, count: int = 3) -> Run:
    run = Run.create(root, {"rate": 2})
    for i in range(count):
        run.append_request(dataclasses.replace(RECORD, request_id=f"r-{i}"))
    return run


class TestCreate:
    def test_folder_and_its_document(self, tmp_path: Path) -> None:
        now = datetime(2026, 11, 23, 23, 5, 9, tzinfo=UTC)
        run = Run.create(tmp_path / "runs", {"seed": 7, "rate": 2.5, "model": "m"}, now=now)
        document = json.loads((run.path / "experiment.json").read_text())
        assert run.path.name.startswith("20261123T230509Z-")
        assert document["run_id"] == run.run_id == run.path.name
        assert document["date"] == "2026-11-23T23:05:09+00:00"
        assert document["seed"] == 7
        assert document["experiment"] == run.experiment == {"seed": 7, "rate": 2.5, "model": "m"}
        assert {"python", "openai"} <= set(document["versions"])
        assert document["hardware"]["cores"] == len(os.sched_getaffinity(0))
        assert document["hardware"]["cpu"]
        assert os.uname().nodename not in json.dumps(document)

    def test_ids_sort_by_time_and_differ(self, tmp_path: Path) -> None:
        times = [datetime(2026, 1, 31, h, tzinfo=UTC) for h in (1, 2, 23)]
        names = [Run.create(tmp_path, {}, now=t).run_id for t in times]
        assert names == sorted(names)
        assert Run.create(tmp_path, {}).run_id != Run.create(tmp_path, {}).run_id

    def test_numbered_ids_never_collide(self, tmp_path: Path) -> None:
        runs = [Run.create(tmp_path, {}, run_id="mine", numbered=True) for _ in range(3)]
        assert [run.run_id for run in runs] == ["mine", "mine-2", "mine-3"]

    def test_existing_or_invalid_id_is_rejected(self, tmp_path: Path) -> None:
        Run.create(tmp_path, {}, run_id="mine")
        with pytest.raises(RunError, match="'mine'"):
            Run.create(tmp_path, {}, run_id="mine")
        for bad in ("../up", "a/b", ".hidden", "a b"):
            with pytest.raises(RunError, match="run_id is"):
                Run.create(tmp_path, {}, run_id=bad)

    def test_any_parameter_becomes_json(self, tmp_path: Path) -> None:
        class Spec(BaseModel):
            model: str = "m"
            key: SecretStr = SecretStr("hush")

        given = {"spec": Spec(), "root": tmp_path, "n": np.int64(3), "xs": np.arange(2), "s": {1}}
        run = Run.create(tmp_path, given, run_id="x")
        read = Run.open(run.path).experiment
        assert read["spec"]["model"] == "m"
        assert "hush" not in (run.path / "experiment.json").read_text()
        assert (read["n"], read["xs"], read["s"]) == (3, [0, 1], [1])
        assert read["root"] == str(tmp_path)


@pytest.mark.parametrize("key", ["api_key", "HF_TOKEN", "Authorization"])
def test_no_file_contains_a_secret(key: str, tmp_path: Path) -> None:
    run = Run.create(tmp_path, {"deployment": {key: "hush"}})
    run.append_telemetry({"time_s": 1.0, key: "hush"})
    run.finish({key: "hush"})
    for file in run.path.iterdir():
        assert "hush" not in file.read_text()


class TestLines:
    def test_record_round_trips_to_the_microsecond(self, tmp_path: Path) -> None:
        run = Run.create(tmp_path, {})
        run.append_request(RECORD)
        run.append_request(SHED)
        lines = (run.path / "requests.jsonl").read_text().splitlines()
        names = [field.name for field in dataclasses.fields(RequestRecord)]
        assert [list(json.loads(line)) for line in lines] == [names, names]
        assert json.loads(lines[0])["token_times_s"] == [0.75, 1.000001, 1.25]
        assert json.loads(lines[1])["first_token_s"] is None, "absent is null"
        read = list(Run.open(run.path).records())
        rounded = dataclasses.replace(RECORD, sent_s=0.5, token_times_s=(0.75, 1.000001, 1.25))
        assert read == [rounded, dataclasses.replace(SHED, sent_s=0.5)]

    def test_line_is_on_disk_at_once(self, tmp_path: Path) -> None:
        run = filled(tmp_path, 1)
        assert (run.path / "requests.jsonl").read_bytes().endswith(b"\n")
        run.append_telemetry({"time_s": 1.0, "deployment": "d", "target": 1})
        assert json.loads((run.path / "telemetry.jsonl").read_text())["deployment"] == "d"

    @pytest.mark.parametrize("cut", [1, 2, 30, 200])
    def test_incomplete_last_line_is_ignored(self, tmp_path: Path, cut: int) -> None:
        run = filled(tmp_path)
        file = run.path / "requests.jsonl"
        file.write_bytes(file.read_bytes()[:-cut])
        again = Run.open(run.path)
        ids = [record.request_id for record in again.records()]
        assert ids == ["r-0", "r-1"]

    def test_appending_after_an_incomplete_line(self, tmp_path: Path) -> None:
        run = filled(tmp_path)
        file = run.path / "requests.jsonl"
        file.write_bytes(file.read_bytes()[:-20])
        again = Run.open(run.path)
        again.append_request(dataclasses.replace(RECORD, request_id="later"))
        assert [record.request_id for record in again.records()] == ["r-0", "r-1", "later"]
        assert len(again.requests_frame()) == 3

    @pytest.mark.parametrize(
        "line", [b"{not json}", b"[1, 2]", b'{"request_id": "x"}', b"", b"\xff\xfe", b"\x00\x00"]
    )
    def test_invalid_line_is_named(self, tmp_path: Path, line: bytes) -> None:
        run = filled(tmp_path)
        file = run.path / "requests.jsonl"
        lines = file.read_bytes().splitlines()
        file.write_bytes(b"\n".join([lines[0], line, lines[2], b""]))
        with pytest.raises(RunError, match=r"requests\.jsonl, line 2: "):
            list(run.records())

    def test_unknown_status_is_rejected(self, tmp_path: Path) -> None:
        run = filled(tmp_path, 1)
        file = run.path / "requests.jsonl"
        file.write_bytes(file.read_bytes().replace(b'"ok"', b'"fine"'))
        with pytest.raises(RunError, match="line 1"):
            list(run.records())

    def test_run_of_a_killed_process_is_readable(self, tmp_path: Path) -> None:
        run = Run.create(tmp_path, {})
        context = multiprocessing.get_context("spawn")
        writer = context.Process(target=_write_forever, args=(str(run.path),))
        writer.start()
        file = run.path / "requests.jsonl"
        while not file.exists() or file.stat().st_size < 20_000:
            assert writer.is_alive()
            time.sleep(0.01)
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        ids = [record.request_id for record in Run.open(run.path).records()]
        assert ids == [f"r-{i}" for i in range(len(ids))]
        assert len(ids) > 50


def _write_forever(path: str) -> None:
    run, i = Run.open(path), 0
    while True:
        run.append_request(dataclasses.replace(RECORD, request_id=f"r-{i}"))
        i += 1


class TestFrames:
    def test_requests_frame(self, tmp_path: Path) -> None:
        run = Run.create(tmp_path, {})
        run.append_request(RECORD)
        run.append_request(SHED)
        frame = run.requests_frame()
        assert list(frame.status) == ["ok", "shed"]
        assert frame.ttft_ms[0] == pytest.approx(250)
        assert frame.e2el_ms[0] == pytest.approx(750)
        assert frame.tpot_ms[0] == pytest.approx(250)
        assert frame[["ttft_ms", "tpot_ms", "first_token_s", "output_tokens"]].isna().all(axis=1)[1]
        assert frame.token_times_s[0] == (0.75, 1.000001, 1.25)
        assert "client_health" not in frame.attrs

    def test_frames_of_an_empty_run_have_columns(self, tmp_path: Path) -> None:
        run = Run.create(tmp_path, {})
        assert run.requests_frame().empty
        assert {"request_id", "ttft_ms", "status"} <= set(run.requests_frame().columns)
        columns = ["time_s", "deployment", "target", "running", "starting", "stopping"]
        assert list(run.samples_frame().columns)[:6] == columns
        assert list(run.records()) == []
        assert run.summary() is None

    def test_samples_frame(self, tmp_path: Path) -> None:
        run = Run.create(tmp_path, {})
        run.append_telemetry({"time_s": 1.00000049, "deployment": "d", "target": 2, "cost": 0.5})
        run.append_telemetry({"time_s": 2.0, "deployment": "d", "running": 1})
        frame = Run.open(run.path).samples_frame()
        assert list(frame.time_s) == [1.0, 2.0]
        assert list(frame.columns)[-1] == "cost"
        assert frame.running.isna().tolist() == [True, False]


class TestFinish:
    def test_summary_round_trips(self, tmp_path: Path) -> None:
        run = filled(tmp_path)
        health = ClientHealth.judge(cpu_share=0.99)
        summary = summarize(run.records(), health=health)
        run.finish(summary)
        assert json.loads((run.path / "summary.json").read_text())["completed"] == 3
        assert Run.open(run.path).summary() == summary
        assert run.requests_frame().attrs["client_health"]["client_limited"] is True
        assert sorted(p.name for p in run.path.iterdir()) == [
            "experiment.json",
            "requests.jsonl",
            "summary.json",
        ]

    def test_finishing_again_replaces_the_summary(self, tmp_path: Path) -> None:
        run = filled(tmp_path, 1)
        run.finish(summarize(run.records()))
        run.append_request(SHED)
        run.finish(summarize(run.records()))
        summary: Any = run.summary()
        assert (summary.completed, summary.shed) == (1, 1)

    def test_unreadable_files_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match="is not a run folder"):
            Run.open(tmp_path / "nowhere")
        run = Run.create(tmp_path, {})
        run.finish({"completed": "many"})
        with pytest.raises(RunError, match=r"summary\.json is not a summary"):
            run.summary()
        (run.path / "experiment.json").write_text("{")
        with pytest.raises(RunError, match=r"experiment\.json cannot be read"):
            Run.open(run.path)


class TestTwoClocks:
    def test_two_live_loads_in_one_folder_are_an_error(self, tmp_path: Path) -> None:
        run = Run.create(tmp_path, {})
        for _ in range(2):
            run.append_change(LoadChange(0.5, "start", load={}))
            run.append_change(LoadChange(9.0, "end"))
        with pytest.raises(RunError, match=r"2 loads in load\.jsonl, each with its own clock"):
            run.changes()

    def test_requests_of_two_loads_are_an_error(self, tmp_path: Path) -> None:
        run = Run.create(tmp_path, {})
        run.append_request(record(0.0, 0.1, request_id="load-0a1b2c-0-0"))
        run.append_request(record(0.2, 0.3, request_id="load-0a1b2c-1-0"))
        assert len(run.requests_frame()) == 2
        run.append_request(record(0.0, 0.1, request_id="load-ffffff-0-0"))
        with pytest.raises(RunError, match=r"2 loads in requests\.jsonl"):
            run.requests_frame()
