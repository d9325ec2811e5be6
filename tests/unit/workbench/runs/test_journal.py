"""What a killed process leaves on disk, against what it printed before."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT, TESTS
from support.records import record

from workbench.loadgen.senders import WorkerConfig
from workbench.loadgen.workers import WorkerHandle
from workbench.runs import journal
from workbench.runs.run import Run
from workbench.workload.prompt import Prompt
from workbench.workload.spec import Arrival

WRITER = """
import sys, time
from pathlib import Path
from support.records import record
from workbench.runs.journal import Sent, Journal
log = Journal(Path(sys.argv[1]))
for n in range(1000):
    log.append(Sent(f"r-{n}", n, n + 0.5, "m", None))
    if n % 3:
        log.append(record(n, n + 1.0, request_id=f"r-{n}"))
    print(n, flush=True)
    if n == 9:
        time.sleep(600)
"""


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """The file of a worker that was killed after ten requests, every third in progress."""
    path = tmp_path / "unsaved" / "one.jsonl"
    folders = [str(TESTS), str(ROOT)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], env=env, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    for _ in range(10):
        assert writer.stdout.readline()
    assert journal.read(path) == ([], []), "the file of a living worker is not read"
    writer.kill()
    writer.communicate()
    return path


def test_journal_has_ended_requests_and_those_in_progress(killed: Path) -> None:
    ended, in_progress = journal.read(killed)
    assert [r.request_id for r in ended] == ["r-1", "r-2", "r-4", "r-5", "r-7", "r-8"]
    assert [request.sent for request in in_progress] == ["r-0", "r-3", "r-6", "r-9"]
    assert ended[0] == record(1, 2.0, request_id="r-1")
    cut = journal.failed(in_progress[1], "why", 12.0)
    assert (cut.status, cut.error, cut.scheduled_s, cut.sent_s) == ("error", "why", 3, 3.5)
    assert (cut.end_s, cut.first_token_s, cut.token_times_s) == (12.0, None, ())


def test_incomplete_line_is_ignored(killed: Path) -> None:
    with killed.open("ab") as file:
        file.write(b'{"sent":"r-10","sched')
    assert len(journal.read(killed)[1]) == 4


def test_run_reads_the_journals_of_its_workers_once(killed: Path, tmp_path: Path) -> None:
    (tmp_path / "experiment.json").write_text("{}")
    run = Run.open(tmp_path)
    run.append_request(record(1, 2.0, request_id="r-1"))
    status = {record.request_id: record.status for record in run.records()}
    assert len(list(run.records())) == 10
    assert [n for n in range(10) if status[f"r-{n}"] == "error"] == [0, 3, 6, 9]


def test_full_disk_ends_the_journal_only(tmp_path: Path) -> None:
    opened = journal.open_first([str(tmp_path / "not" / "there" / "x"), str(tmp_path / "x.jsonl")])
    assert opened is not None
    assert opened.path == tmp_path / "x.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        opened.append(record(0, 1.0))
        opened.append(record(0, 1.0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not opened.path.exists()
    assert journal.open_first(["/proc/nowhere/x"]) is None


class TestPresumedSent:
    """When the journal is lost with the worker's node, the plan says what was in progress."""

    PROMPT = Prompt(content=(1, 2), prompt_tokens=2, max_tokens=4)

    def handle(self, at: list[float | None], users: int | None, turns: int = 1) -> WorkerHandle:
        config = WorkerConfig(
            "m", {"tenant": "t"}, "load", epoch_s=0.0, start_s=10.0, max_concurrency=users
        )
        share = [(2 * i, Arrival(due, (self.PROMPT,) * turns)) for i, due in enumerate(at)]
        return WorkerHandle(None, config=config, share=share)

    def test_open_loop_had_sent_what_was_due(self) -> None:
        handle = self.handle([0.0, 1.0, 2.0, 9.0], None)
        presumed = list(handle._presumed_sent({"load-0-0"}, now_s=12.5))
        assert [(request.sent, request.scheduled_s) for request in presumed] == [
            ("load-2-0", 11.0),
            ("load-4-0", 12.0),
        ]
        assert presumed[0].tenant == "t"

    def test_closed_loop_had_one_request_per_user(self) -> None:
        handle = self.handle([None] * 6, 2)
        presumed = list(handle._presumed_sent({"load-0-0", "load-4-0"}, now_s=12.5))
        assert [request.sent for request in presumed] == ["load-2-0", "load-6-0"]

    def test_conversation_was_at_its_first_unrecorded_turn(self) -> None:
        handle = self.handle([0.0], None, turns=3)
        assert [request.sent for request in handle._presumed_sent({"load-0-0"}, now_s=99)] == [
            "load-0-1"
        ]
