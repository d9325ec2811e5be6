"""What a killed process leaves on disk; the truth is what it said before it died."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT, TESTS
from support.records import record

from workbench.loadgen.worker import WorkerConfig
from workbench.loadgen.workers import WorkerHandle
from workbench.runs import journal
from workbench.runs.run import Run
from workbench.workload.prompt_generator import Prompt
from workbench.workload.spec import Arrival

WRITER = """
import sys, time
from pathlib import Path
from support.records import record
from workbench.runs.journal import Sent, Journal
spool = Journal(Path(sys.argv[1]))
for n in range(1000):
    spool.append(Sent(f"r-{n}", n, n + 0.5, "m", None))
    if n % 3:
        spool.append(record(n, n + 1.0, request_id=f"r-{n}"))
    print(n, flush=True)
    if n == 9:
        time.sleep(600)
"""


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """The file of a worker that was killed after ten requests, every third still under way."""
    path = tmp_path / "unsaved" / "one.jsonl"
    folders = [str(TESTS), str(ROOT)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], env=env, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    for _ in range(10):
        assert writer.stdout.readline()
    assert journal.read(path) == ([], []), "a living worker's file is not taken from it"
    writer.kill()
    writer.communicate()
    return path


def test_what_ended_and_what_was_under_way_is_all_there(killed: Path) -> None:
    ended, under_way = journal.read(killed)
    assert [r.request_id for r in ended] == ["r-1", "r-2", "r-4", "r-5", "r-7", "r-8"]
    assert [one.sent for one in under_way] == ["r-0", "r-3", "r-6", "r-9"]
    assert ended[0] == record(1, 2.0, request_id="r-1")
    cut = journal.failed(under_way[1], "why", 12.0)
    assert (cut.status, cut.error, cut.scheduled_s, cut.sent_s) == ("error", "why", 3, 3.5)
    assert (cut.end_s, cut.first_token_s, cut.token_times_s) == (12.0, None, ())


def test_a_line_that_was_cut_is_not_read(killed: Path) -> None:
    with killed.open("ab") as file:
        file.write(b'{"sent":"r-10","sched')
    assert len(journal.read(killed)[1]) == 4


def test_a_run_reads_what_its_workers_left_once(killed: Path, tmp_path: Path) -> None:
    (tmp_path / "experiment.json").write_text("{}")
    run = Run.open(tmp_path)
    run.append_request(record(1, 2.0, request_id="r-1"))
    found = {r.request_id: r.status for r in run.records()}
    assert len(list(run.records())) == 10
    assert [n for n in range(10) if found[f"r-{n}"] == "error"] == [0, 3, 6, 9]


def test_a_disk_that_takes_no_more_ends_the_spool_and_nothing_else(tmp_path: Path) -> None:
    one = journal.open_first([str(tmp_path / "not" / "there" / "x"), str(tmp_path / "x.jsonl")])
    assert one is not None
    assert one.path == tmp_path / "x.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        one.append(record(0, 1.0))
        one.append(record(0, 1.0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not one.path.exists()
    assert journal.open_first(["/proc/nowhere/x"]) is None


class TestFromThePlanAlone:
    """Where the worker's node is gone, and its file with it."""

    PROMPT = Prompt(content=(1, 2), prompt_tokens=2, max_tokens=4)

    def seat(self, at: list[float | None], slots: int | None, turns: int = 1) -> WorkerHandle:
        job = WorkerConfig(
            "m", {"tenant": "t"}, "load", epoch_s=0.0, start_s=10.0, max_concurrency=slots
        )
        share = [(2 * i, Arrival(due, (self.PROMPT,) * turns)) for i, due in enumerate(at)]
        return WorkerHandle(None, config=job, share=share)

    def test_an_open_loop_had_sent_what_was_due(self) -> None:
        seat = self.seat([0.0, 1.0, 2.0, 9.0], None)
        found = list(seat._presumed_sent({"load-0-0"}, now_s=12.5))
        assert [(one.sent, one.scheduled_s) for one in found] == [
            ("load-2-0", 11.0),
            ("load-4-0", 12.0),
        ]
        assert found[0].tenant == "t"

    def test_a_closed_loop_had_its_slots_full(self) -> None:
        seat = self.seat([None] * 6, 2)
        found = list(seat._presumed_sent({"load-0-0", "load-4-0"}, now_s=12.5))
        assert [one.sent for one in found] == ["load-2-0", "load-6-0"]

    def test_a_conversation_stood_at_its_first_turn_without_a_record(self) -> None:
        seat = self.seat([0.0], None, turns=3)
        assert [one.sent for one in seat._presumed_sent({"load-0-0"}, now_s=99)] == ["load-0-1"]
