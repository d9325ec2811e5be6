"""Parts of a load that need no cluster: the clocks of other machines, and what progress says."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

import IPython.display
import pytest
from support.records import failed, record

from workbench.clock import start_clock
from workbench.errors import SettingError
from workbench.loadgen.progress import make_progress
from workbench.loadgen.worker import read_clock
from workbench.loadgen.workers import clock_epoch_s
from workbench.workload.arrivals import ClosedLoop, Constant
from workbench.workload.prompts import RandomPrompts
from workbench.workload.spec import Arrival, LoadSpec

LOAD = LoadSpec(arrivals=Constant(rate=2), prompts=RandomPrompts(input=4, output=2), count=4)
SESSIONS = [Arrival(i / 2, (None,)) for i in range(4)]  # type: ignore[arg-type]


class Elsewhere:
    """A worker whose clock runs `ahead_s` ahead, on this machine or on another."""

    def __init__(self, boot: str, ahead_s: float) -> None:
        self._boot, self._ahead_s = boot, ahead_s
        self.clock: Any = self
        self.asked = 0

    async def remote(self) -> tuple[str, float]:
        self.asked += 1
        if self.asked == 2:
            await asyncio.sleep(0.05)  # one slow answer: its reading is not to be trusted
        return self._boot, time.perf_counter() + self._ahead_s


def epoch(worker: Elsewhere) -> tuple[float, float]:
    clock = start_clock()
    zero = time.perf_counter() - clock()
    return asyncio.run(clock_epoch_s(worker, clock)), zero


def test_a_worker_of_the_same_boot_has_the_same_clock() -> None:
    found, zero = epoch(Elsewhere(read_clock()[0], 0.0))
    assert found == pytest.approx(zero, abs=0.005)


@pytest.mark.parametrize("ahead_s", [1000.0, -500.0])
def test_another_machines_clock_is_asked_until_its_offset_is_known(ahead_s: float) -> None:
    found, zero = epoch(Elsewhere("another boot", ahead_s))
    assert found - zero == pytest.approx(ahead_s, abs=0.005)


def test_lines_say_what_is_sent_what_failed_and_how_long_it_takes_yet(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with make_progress("lines", LOAD, SESSIONS) as said:
        said.show([record(0.0, 0.1, 0.2), failed("error")], 1, 0.5)
        said.say("ended early: enough")
    out = capsys.readouterr().out
    assert "sending 4 requests, 2 a second" in out
    assert "2 of 4 requests ended, 1 failed, 1 in progress, about 1 s left" in out
    assert "ended early: enough" in out


def test_a_closed_loop_is_judged_by_its_pace(capsys: pytest.CaptureFixture[str]) -> None:
    load = LOAD.model_copy(update={"arrivals": ClosedLoop(max_concurrency=2)})
    with make_progress("lines", load, [Arrival(None, s.turns) for s in SESSIONS]) as said:
        said.show([record(0.0, 0.1, 0.2)], 1, 10.0)
    out = capsys.readouterr().out
    assert "2 at a time" in out
    assert "about 30 s left" in out


def test_the_bar_is_drawn_anew_in_its_place_and_is_no_widget(
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
    with make_progress("bar", LOAD, SESSIONS) as bar:
        bar.show([record(0.0, 0.1, 0.2)], 1, 0.5)
        bar.say("ended early: <b>")
    values = [re.findall(r'value="(\d+)" max="(\d+)"', text)[0] for text in drawn]
    assert values == [("0", "4"), ("1", "4"), ("1", "4")]
    assert "&lt;b&gt;" in drawn[-1]
    assert "1 of 4 requests ended" in drawn[-1]


def test_a_progress_that_is_none_is_refused() -> None:
    with pytest.raises(SettingError, match="'bars'"):
        make_progress("bars", LOAD, SESSIONS)
