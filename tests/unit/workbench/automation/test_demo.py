"""The demo's view in a terminal, its lines in a pipe, and its last lines."""

from __future__ import annotations

import asyncio
import io
import os
import pty
from collections import deque
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from rich.console import Console
from support.phased_service import PhasedService

from workbench.automation import demo
from workbench.automation.notebooks import NOTEBOOKS
from workbench.automation.terminal_view import TerminalView, bars
from workbench.experiments import Phase, autoscaling_phases, run_phases
from workbench.metrics.slo import SLO
from workbench.records import LoadChange
from workbench.runs.run import Run

NOTEBOOK = NOTEBOOKS / "02_watch_autoscaling.ipynb"


def serve(root: Path, deployment: str = "m", until: str = "wake-up", **service: Any) -> Run:
    """Run the phases up to `until` on a service in virtual time."""
    fake = PhasedService(Run.create(root, {}, run_id="r"), deployment=deployment, **service)
    plan = {"arrivals": {"kind": "constant", "rate": 1.5}}
    fake.run.append_change(LoadChange(0.0, "start", load=plan))
    phases: list[Phase] = []
    for phase in autoscaling_phases(4.6, SLO(ttft_ms=1000, target=0.9)):
        phases.append(phase)
        if phase.name == until:
            break
    ignore = list[str]().append
    asyncio.run(
        run_phases(phases, fake, fake.run, deployment=deployment, notify=ignore, sleep=fake.sleep)
    )
    return fake.run


def drawn(view: TerminalView) -> str:
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(view)
    return console.export_text()


def test_view_before_the_run_exists(tmp_path: Path) -> None:
    assert "starting Ray" in drawn(TerminalView(tmp_path / "later", "m"))


def test_view_shows_the_service_as_it_is(tmp_path: Path) -> None:
    run = serve(tmp_path, until="hold")
    view = TerminalView(run.path, "m")
    rows = view.rows()
    last = list(run.samples())[-1]
    assert rows["time"] == f"{int(last.time_s) // 60}:{int(last.time_s) % 60:02d}"
    assert rows["replicas"].startswith("2 running of 2")
    ended = sum(1 for _ in run.records())
    assert rows["load"] == f"0 requests/s, {ended} requests ended, 0 failed"
    assert rows["TTFT p95"].startswith("50 ms in the last 6 s")
    text = drawn(view)
    assert all(label in text for label in rows)


def test_view_follows_the_run(tmp_path: Path) -> None:
    fake = PhasedService(Run.create(tmp_path, {}, run_id="r"))
    view, seen = TerminalView(fake.run.path, "m"), list[dict[str, str]]()

    def look(now: Any) -> bool:
        seen.append(view.rows())
        return bool(now.phase_s >= 10)

    phase = Phase("one", "10 s are over", look, limit_s=20, rate=2.0)
    asyncio.run(run_phases([phase], fake, fake.run, deployment="m", notify=print, sleep=fake.sleep))
    assert seen[-1]["phase"] == "one: until 10 s are over"
    assert seen[-1]["load"].startswith("2 requests/s, ")
    assert seen[-1]["replicas"].endswith("█" * 9 + "█")  # one replica in each of ten samples


def test_bars_rise_from_zero_to_the_highest_value() -> None:
    assert bars(deque([0.0, 3.5, 7.0, None])) == "▁▅█ "
    assert bars(deque([0.0, 0.0])) == "▁▁"
    assert bars(deque[float | None]()) == ""


@pytest.fixture
def notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace the notebook by phases on a service in virtual time."""

    def run_notebook(path: Path, parameters: Any, *, runs: Path, run_id: str) -> Path:
        print("a line of the notebook")
        return serve(runs, deployment="tiny-llama-glossary").path

    monkeypatch.setattr(demo, "run_notebook", run_notebook)
    return tmp_path


def test_demo_in_a_pipe_prints_lines_only(
    notebook_runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo.run_demo(NOTEBOOK, {"accelerator": "cpu"}, runs=notebook_runs, run_id="r")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a line of the notebook"
    assert lines[2].startswith("The load doubled to 4.6 requests/s at 0:13; ")
    assert lines[-1] == f"report  file://{notebook_runs}/r/report.html"
    assert not any("\x1b" in line or "│" in line for line in lines)


def read_to_end(terminal: int, shown: bytearray) -> None:
    """Collect what is written to a terminal, which holds a few kilobytes, until it is closed."""
    with suppress(OSError):  # the other side has been closed
        while data := os.read(terminal, 4096):
            shown += data
    os.close(terminal)


def test_demo_in_a_terminal_shows_the_view(
    notebook_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    leader, follower = pty.openpty()
    shown = bytearray()
    reader = Thread(target=read_to_end, args=(leader, shown))
    reader.start()
    with open(follower, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr("sys.stdout", terminal)
        demo.run_demo(NOTEBOOK, {"accelerator": "cpu"}, runs=notebook_runs, run_id="r")
    reader.join()
    text = shown.decode()
    assert "watch autoscaling" in text
    assert "a line of the notebook" in text
    assert "report  file://" in text


def test_slo_is_that_of_the_parameters() -> None:
    given = {"slo": {}, "slo_ttft_ms": 500.0, "slo_tpot_ms": 50.0, "slo_target": 0.8}
    assert demo._slo(given) == SLO(ttft_ms=500, tpot_ms=50, target=0.8)
    assert demo._slo(given | {"slo": {"e2el_ms": 9.0}}) == SLO(e2el_ms=9)
