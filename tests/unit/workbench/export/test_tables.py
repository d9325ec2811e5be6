"""Exported tables, read again by pandas, pyarrow and the csv module."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from support.records import failed, record

from workbench.errors import RunError, SettingError
from workbench.export import tables
from workbench.export.tables import summaries_frame, write_requests, write_summaries
from workbench.metrics.slo import SLO
from workbench.metrics.summary import summarize
from workbench.runs.run import Run

AWKWARD = 'it broke: "a, b"\nand\tmore'
RECORDS = [
    record(0.0, 0.1, 0.3, 0.6, request_id="r1", scheduled_s=-0.05),
    record(1.0, request_id="r2", status="ok", output_tokens=None, stages={"queue": 1.5, "x": None}),
    failed("error", 2.0, 2.5, request_id="r3", error=AWKWARD, tenant="blue"),
]


def made(root: Path, run_id: str = "run-1", **parameters: Any) -> Run:
    run = Run.create(root, {"notebook": "x", "parameters": parameters}, run_id=run_id)
    for request in RECORDS:
        run.append_request(request)
    run.finish(summarize(RECORDS, duration_s=3.0, slo=SLO(ttft_ms=50)))
    return run


def test_parquet_has_every_field_and_the_latencies(tmp_path: Path) -> None:
    path = write_requests(made(tmp_path), tmp_path / "out" / "requests.parquet")
    rows = pq.read_table(path).to_pylist(maps_as_pydicts="strict")
    assert [row["request_id"] for row in rows] == ["r1", "r2", "r3"]
    first, second, third = rows
    assert first["run_id"] == "run-1"
    assert first["token_times_s"] == [0.1, 0.3, 0.6]
    assert first["output_tokens"] == 3
    assert first["ttft_ms"] == pytest.approx(100)
    assert first["tpot_ms"] == pytest.approx(250)
    assert first["ttft_from_schedule_ms"] == pytest.approx(150)
    assert second["stages"] == {"queue": 1.5, "x": None}
    assert (second["output_tokens"], second["ttft_ms"], second["scheduled_s"]) == (None,) * 3
    assert (third["status"], third["error"], third["tenant"]) == ("error", AWKWARD, "blue")


def test_csv_has_the_same_rows(tmp_path: Path) -> None:
    run = made(tmp_path)
    with write_requests(run, tmp_path / "requests.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    whole = pq.read_table(write_requests(run, tmp_path / "requests.parquet"))
    assert list(rows[0]) == whole.column_names
    assert json.loads(rows[0]["token_times_s"]) == [0.1, 0.3, 0.6]
    assert (rows[0]["output_tokens"], rows[1]["output_tokens"]) == ("3", "")
    assert json.loads(rows[1]["stages"]) == {"queue": 1.5, "x": None}
    assert rows[2]["error"] == AWKWARD
    assert float(rows[0]["tpot_ms"]) == pytest.approx(250)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_several_runs_in_chunks(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "CHUNK", 2)
    runs = [made(tmp_path, "run-1"), made(tmp_path, "run-2")]
    path = write_requests(runs, tmp_path / f"requests{suffix}")
    read = pd.read_csv if suffix == ".csv" else pd.read_parquet
    frame = read(path)
    assert list(frame.run_id + frame.request_id) == [
        f"run-{run}r{number}" for run in (1, 2) for number in (1, 2, 3)
    ]


def test_summaries_have_parameters_and_figures(tmp_path: Path) -> None:
    runs = [
        made(tmp_path, "run-1", rate=2, grid=[1, 2], api_key="sk-secret", note="a"),
        made(tmp_path, "run-2", rate=2.5, note=3),
    ]
    frame = pd.read_parquet(write_summaries(runs, tmp_path / "summaries.parquet"))
    assert frame.run_id.tolist() == ["run-1", "run-2"]
    assert frame["parameters.rate"].tolist() == [2, 2.5]
    assert frame["parameters.note"].tolist() == ["a", "3"]
    assert frame["parameters.grid"].iloc[0] == "1, 2"
    assert frame["parameters.api_key"].iloc[0] == "[redacted]"
    assert frame.completed.tolist() == [2, 2]
    assert frame.mean_ttft_ms.tolist() == pytest.approx([100, 100])
    assert frame.request_goodput.tolist() == pytest.approx([1 / 3, 1 / 3])
    assert set(frame.slo_ttft_ms) == {50}
    again = pd.read_csv(write_summaries(runs, tmp_path / "summaries.csv"))
    assert again.p99_ttft_ms.tolist() == pytest.approx([100, 100])


def test_invalid_input_leaves_no_file(tmp_path: Path) -> None:
    run = made(tmp_path / "runs")
    with pytest.raises(SettingError, match=r"path must end in \.csv or \.parquet, got 'x\.xlsx'"):
        write_requests(run, "x.xlsx")
    with pytest.raises(RunError, match="run new has no summary"):
        summaries_frame(Run.create(tmp_path / "runs", {}, run_id="new"))
    with (run.path / "requests.jsonl").open("a") as file:
        file.write("{broken}\n")
    with pytest.raises(RunError, match=r"requests\.jsonl"):
        write_requests(run, tmp_path / "out.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_unwritable_path_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        write_requests(made(tmp_path / "runs"), tmp_path / "file" / "requests.csv")
