"""Notebook 02 by hand: the load moved in a real browser, against the real engine."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from support.jupyterlab import run_all, trace, wait_until
from support.process_memory import PeakMemory

from workbench.runs.run import Run

pytestmark = [pytest.mark.browser, pytest.mark.engine, pytest.mark.timeout(900)]
MOST_GIB = 16


@pytest.fixture
def running(lab: Callable[..., str], page: Any) -> Any:
    """The notebook with its dashboard on the screen and the load on its way."""
    # Slow to rise and long to hold: the hand decides when it is over.
    plan = {"port": 0, "run_id": "by-hand", "peak_rate": 4.0, "ramp_s": 30.0, "hold_s": 600.0}
    run_all(page, lab("02_watch_autoscaling", **plan), "Watch autoscaling")
    page.locator(".workbench-dashboard .js-plotly-plot").wait_for(timeout=300_000)
    return page


def test_the_load_in_the_hand(running: Any, tmp_path: Path, record_property: Any) -> None:
    page = running
    with PeakMemory(os.getpid()) as memory:
        wait_for_replicas(page)
        move_the_rate(page)
        page.wait_for_timeout(8_000)
        take_picture(page, tmp_path)
        change_the_scaling(page)
        press_stop(page)
    record_property("peak_gib", memory.gib)
    print(f"peak memory of two replicas, JupyterLab and Chromium: {memory.gib:.1f} GiB")
    assert 3 < memory.gib < MOST_GIB
    kept = Run.open(tmp_path / "runs" / "by-hand")
    told = [what for what, _ in groupby(change.what for change in kept.changes())]
    # A slider's last value may arrive after the first of the next one.
    assert [told[0], *told[-2:]] == ["start", "scaling", "end"]
    assert set(told[1:-2]) == {"rate", "output_tokens"}
    statuses = [record.status for record in kept.records()]
    assert statuses.count("ok") > 20
    assert set(statuses) <= {"ok", "cancelled"}


def wait_for_replicas(page: Any) -> None:
    """Both replicas of the plan run, and requests are answered."""

    def holds() -> bool:
        replicas, achieved = trace(page, "running")[1], trace(page, "achieved")[1]
        return max(replicas, default=0) >= 2 and max(achieved, default=0) > 0

    wait_until(page, holds, "two replicas", timeout_s=300)


def move_the_rate(page: Any) -> None:
    """By keyboard: the slider is reached with Tab, and End is its far end."""
    slider = page.locator(".workbench-dashboard .noUi-handle").first
    slider.focus()
    before = trace(page, "offered")[1][-1]
    for _ in range(15):
        page.keyboard.press("ArrowRight")
    tokens = page.locator(".workbench-dashboard .noUi-handle").nth(1)
    tokens.focus()
    page.keyboard.press("ArrowRight")
    wait_until(page, lambda: trace(page, "offered")[1][-1] > before, "more offered", timeout_s=30)
    readout = page.locator(".workbench-dashboard .widget-readout").first
    wanted = float(readout.inner_text())
    wait_until(
        page,
        lambda: abs(trace(page, "offered")[1][-1] - wanted) < 0.05,
        "the curve at the slider's value",
        timeout_s=30,
    )
    wait_until(page, lambda: len(trace(page, "changed by hand")[0]) >= 1, "a mark", timeout_s=30)


def take_picture(page: Any, tmp_path: Path) -> None:
    pictures = Path(os.environ.get("PICTURES", tmp_path))
    dashboard = page.locator(".workbench-dashboard")
    dashboard.scroll_into_view_if_needed()
    figure = page.locator(".workbench-dashboard .js-plotly-plot")
    assert figure.bounding_box()["width"] > 800
    dashboard.screenshot(path=pictures / "dashboard.png")
    page.screenshot(path=pictures / "dashboard-lab.png")


def change_the_scaling(page: Any) -> None:
    """One replica at most: the running service gives one up, and goes on answering."""
    most = page.locator(".workbench-dashboard .widget-text", has_text="max_replicas").locator(
        "input"
    )
    most.fill("1")
    most.press("Tab")
    page.locator(".workbench-dashboard button", has_text="Apply").click()
    status = page.locator(".workbench-dashboard [role=status]")
    wait_until(page, lambda: "runs with" in status.inner_text(), "applied", timeout_s=120)
    wait_until(page, lambda: trace(page, "target")[1][-1] == 1, "a target of one", timeout_s=60)
    ended = trace(page, "achieved")[0][-1]
    page.wait_for_timeout(5_000)
    times, achieved = trace(page, "achieved")
    assert max(a for at, a in zip(times, achieved, strict=True) if at > ended) > 0


def press_stop(page: Any) -> None:
    """While the cell below is waiting. The notebook then goes on to its end."""
    page.locator(".workbench-dashboard button", has_text="Stop").click()
    report = page.locator(".jp-OutputArea-output", has_text="report.html")
    report.wait_for(timeout=120_000)
    assert page.locator(".jp-OutputArea-output[data-mime-type*='error']").count() == 0
    status = page.locator(".workbench-dashboard [role=status]")
    assert "stopped by hand" in status.inner_text()
