"""What the progress of a load shows."""

from __future__ import annotations

import re
from typing import Any

import IPython.display
import pytest
from support.records import failed, record

from workbench.errors import SettingError
from workbench.loadgen.progress import make_progress
from workbench.workload.arrivals import ClosedLoop, Constant
from workbench.workload.prompts import RandomPrompts
from workbench.workload.spec import Arrival, LoadSpec

LOAD = LoadSpec(arrivals=Constant(rate=2), prompts=RandomPrompts(input=4, output=2), count=4)
PLAN = [Arrival(i / 2, (None,)) for i in range(4)]  # type: ignore[arg-type]


def test_lines_have_counts_and_the_remaining_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with make_progress("lines", LOAD, PLAN) as progress:
        progress.show([record(0.0, 0.1, 0.2), failed("error")], 1, 0.5)
        progress.show_line("ended early: enough")
    out = capsys.readouterr().out
    assert "sending 4 requests, 2 a second" in out
    assert "2 of 4 requests ended, 1 failed, 1 in progress, about 1 s left" in out
    assert "ended early: enough" in out


def test_remaining_time_of_a_closed_loop_follows_its_pace(
    capsys: pytest.CaptureFixture[str],
) -> None:
    load = LOAD.model_copy(update={"arrivals": ClosedLoop(max_concurrency=2)})
    with make_progress("lines", load, [Arrival(None, s.turns) for s in PLAN]) as progress:
        progress.show([record(0.0, 0.1, 0.2)], 1, 10.0)
    out = capsys.readouterr().out
    assert "2 at a time" in out
    assert "about 30 s left" in out


def test_remaining_time_of_a_closed_loop_ends_with_its_duration(
    capsys: pytest.CaptureFixture[str],
) -> None:
    load = LOAD.model_copy(
        update={"arrivals": ClosedLoop(max_concurrency=2), "duration_s": 30.0, "count": 100_000}
    )
    plan = [Arrival(None, PLAN[0].turns) for _ in range(1000)]
    with make_progress("lines", load, plan) as progress:
        progress.show([record(0.0, 0.1, 0.2)], 1, 10.0)
    out = capsys.readouterr().out
    assert "sending requests for 30 s, at most 1000, 2 at a time" in out
    assert " 1 requests ended, 1 in progress, about 20 s left" in out


def test_bar_is_updated_in_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[str] = []

    class Handle:
        def update(self, shown: Any) -> None:
            drawn.append(shown.data)

    def display(shown: Any, display_id: bool) -> Handle:
        drawn.append(shown.data)
        return Handle()

    monkeypatch.setattr(IPython.display, "display", display)
    with make_progress("bar", LOAD, PLAN) as bar:
        bar.show([record(0.0, 0.1, 0.2)], 1, 0.5)
        bar.show_line("ended early: <b>")
    values = [re.findall(r'value="([\d.]+)" max="1"', text)[0] for text in drawn]
    assert values == ["0", "0.25", "0.25"]
    assert "&lt;b&gt;" in drawn[-1]
    assert "1 of 4 requests ended" in drawn[-1]


def test_unknown_progress_is_rejected() -> None:
    with pytest.raises(SettingError, match="'bars'"):
        make_progress("bars", LOAD, PLAN)
