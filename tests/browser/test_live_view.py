"""The dashboard in JupyterLab, in a real browser. Load and cluster are scripted: no engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from support.jupyterlab import jupyterlab, run_all, trace, wait_until
from support.paths import ROOT

from workbench.runs.run import Run

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
CREATE = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from support.scripted_load import scripted_dashboard
stages = [(4.0, 20.0), (4.0, 4000.0)]
dashboard = scripted_dashboard("runs", stages, speed=2.0, rescale_s=10.0)
dashboard.start()
"""
WAIT = "result = await dashboard"
SHOW = "dashboard.show()"
BOX = ".workbench-dashboard"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a notebook whose load lasts until Stop."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    notebook.cells = [nbformat.v4.new_markdown_cell("# Live")]
    notebook.cells += [nbformat.v4.new_code_cell(cell.strip()) for cell in (CREATE, SHOW, WAIT)]
    nbformat.write(notebook, tmp_path / "live.ipynb")
    return tmp_path


@pytest.fixture
def address(folder: Path) -> Iterator[Callable[[str], str]]:
    """A function from the name of a notebook to its address in JupyterLab."""
    settings = f"--LabApp.user_settings_dir={folder / 'settings'}"
    with jupyterlab(folder, folder / "lab.log", settings) as address_of:
        yield address_of


@pytest.fixture
def running(page: Any, address: Callable[[str], str]) -> Any:
    """The page while the load is sent and the last cell waits for it."""
    run_all(page, address("live"), "Live")
    page.locator(f"{BOX} .js-plotly-plot .main-svg").first.wait_for(timeout=120_000)
    wait_until(page, lambda: max(trace(page, "Completed")[1], default=0) > 0, "load", timeout_s=120)
    return page


def part(page: Any, selector: str) -> Any:
    """Return the parts of the first output that match."""
    return page.locator(BOX).first.locator(selector)


def test_load_and_scaling_are_changed_by_keyboard(running: Any, folder: Path) -> None:
    page = running
    number = part(page, "[aria-label='Rate, requests/s, as a number']")
    number.fill("6.5")
    number.press("Enter")
    wait_until(page, lambda: trace(page, "Offered")[1][-1] == 6.5, "the rate", timeout_s=60)
    progress = part(page, ".wb-progress")
    wait_until(page, lambda: "set by hand" in progress.inner_text(), "by hand", timeout_s=60)
    slider = part(page, "[aria-label='Rate, requests/s']")
    wait_until(page, lambda: float(slider.input_value()) == 6.5, "the slider", timeout_s=60)
    slider.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    # JupyterLab has shortcuts for the arrow keys too.
    wait_until(page, lambda: float(slider.input_value()) == 7, "the slider", timeout_s=60)
    wait_until(page, lambda: trace(page, "Offered")[1][-1] == 7, "the slider's rate", timeout_s=60)

    part(page, "[aria-label=max_replicas]").fill("1")
    part(page, "button[type=submit]").press("Enter")
    part(page, "button[aria-busy=true]").wait_for(timeout=60_000)
    force = part(
        page,
        ".wb-note",
    ).last
    wait_until(page, lambda: "0 to 1 replicas" in force.inner_text(), "applied", timeout_s=60)
    part(page, "button[aria-busy=false]").wait_for(timeout=60_000)

    part(page, "[aria-label=target_ongoing_requests]").fill("5000")
    part(page, "button[type=submit]").click()
    status = part(page, "[role=status]")
    wait_until(page, lambda: "must be at most" in status.inner_text(), "an error", timeout_s=60)

    part(page, "button:has-text('Stop')").click()
    wait_until(page, lambda: "stopped by the user" in status.inner_text(), "the end", timeout_s=60)
    wait_until(page, slider.is_disabled, "no more changes", timeout_s=60)
    note = part(page, ".wb-note").first
    wait_until(page, lambda: "has ended" in note.inner_text(), "the reason", timeout_s=60)
    changes = [change.what for change in Run.open(next((folder / "runs").iterdir())).changes()]
    assert changes == ["start", *["rate"] * 6, "scaling", "end"]


def test_reload_restores_history_and_controls_while_the_cell_runs(running: Any) -> None:
    page = running
    assert page.locator(BOX).count() == 2, "one per call of show"
    number = part(page, "[aria-label='Rate, requests/s, as a number']")
    number.fill("3")
    number.press("Enter")
    wait_until(page, lambda: trace(page, "Offered")[1][-1] == 3, "the rate", timeout_s=60)
    saved = page.locator(".jp-NotebookPanel")
    before = trace(page, "Offered")[0]
    assert saved.count() == 1

    page.reload()
    page.locator(f"{BOX} .js-plotly-plot .main-svg").first.wait_for(timeout=120_000)
    wait_until(page, lambda: len(trace(page, "Offered")[0]) > len(before), "more", timeout_s=60)
    assert trace(page, "Offered")[0][: len(before)] == before, "the history is complete"
    restored = part(page, "[aria-label='Rate, requests/s, as a number']")
    wait_until(page, lambda: float(restored.input_value()) == 3, "the number", timeout_s=60)
    part(page, "button:has-text('Pause')").click()
    badge = part(page, ".wb-badge")
    wait_until(page, lambda: badge.inner_text() == "Paused", "the pause", timeout_s=60)
    part(page, "button:has-text('Resume')").click()
    wait_until(page, lambda: badge.inner_text() == "Running", "the load", timeout_s=60)
    part(page, "button:has-text('Stop')").click()
    wait_until(page, lambda: badge.inner_text() == "Ended", "the end", timeout_s=60)


def time_range(page: Any) -> list[float]:
    figure = "document.querySelector('.workbench-dashboard .js-plotly-plot')"
    return [float(value) for value in page.evaluate(f"{figure}._fullLayout.xaxis.range")]


def test_ranges_events_and_sizes(running: Any) -> None:
    page = running
    event = part(page, ".wb-events button:has-text('Target')").first
    event.wait_for(timeout=60_000)
    at_s = float(event.locator(".wb-event-time").inner_text().removesuffix(" s"))
    event.press("Enter")
    part(page, ".wb-live").wait_for(timeout=60_000)  # It is there while the figure does not follow.

    def shows_the_event() -> bool:
        start, end = time_range(page)
        return start <= at_s <= end and end - start <= 30

    wait_until(page, shows_the_event, "the time of the event", timeout_s=60)
    start, end = time_range(page)
    page.wait_for_timeout(2_500)
    assert time_range(page) == [start, end], "a zoomed figure does not follow"

    part(page, ".wb-ranges button:has-text('1 min')").click()
    newest = trace(page, "Offered")[0][-1]

    def follows() -> bool:
        start, end = time_range(page)
        return end > newest and abs(end - start - min(60, max(30, end))) < 0.1

    wait_until(page, follows, "the last minute", timeout_s=60)

    plot = part(page, ".js-plotly-plot .main-svg").first
    height = plot.bounding_box()["height"]
    for width, columns in ((800, 1), (1600, 2), (1280, 2)):
        page.set_viewport_size({"width": width, "height": 1000})
        page.wait_for_timeout(1500)

        def is_laid_out(columns: int = columns) -> bool:
            boxes = (part(page, f".wb-{name}").bounding_box() for name in ("chart", "events"))
            chart, events = boxes
            beside = events["x"] >= chart["x"] + chart["width"]
            fits = plot.bounding_box()["width"] <= chart["width"]
            return bool(beside == (columns == 2) and fits)

        wait_until(page, is_laid_out, f"{columns} columns at {width} pixels", timeout_s=60)
        assert plot.bounding_box()["height"] == height
    part(page, "button:has-text('Stop')").click()


def test_every_control_has_a_name_and_is_reached_by_keyboard(running: Any) -> None:
    page = running
    names = page.evaluate(
        """() => [...document.querySelector('.workbench-dashboard')
            .querySelectorAll('button, input, select')]
            .map(e => [e.tabIndex, e.ariaLabel || e.title || e.textContent.trim()])"""
    )
    assert len(names) > 12
    assert all(tab == 0 and name for tab, name in names)
    part(page, "button:has-text('Pause')").focus()
    page.keyboard.press("Space")
    badge = part(page, ".wb-badge")
    wait_until(page, lambda: badge.inner_text() == "Paused", "the pause", timeout_s=60)
    part(page, "button:has-text('Stop')").click()
    wait_until(page, lambda: badge.inner_text() == "Ended", "the end", timeout_s=60)
