"""The JupyterLab extension in Chromium, with scripted processes in place of notebooks' services."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from support.jupyterlab import jupyterlab
from support.lab_extension import extension_variables
from support.paths import ROOT
from support.services import ServicesProcess

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

NOTEBOOK = "00_first_endpoint"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The server's folder: notebooks of the workbench, and one that is empty."""
    folder = tmp_path / "root"
    (folder / "notebooks").mkdir(parents=True)
    for name in (NOTEBOOK, "02_watch_autoscaling"):
        shutil.copy(ROOT / "notebooks" / f"{name}.ipynb", folder / "notebooks")
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    empty = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell("# Empty")], metadata={"kernelspec": kernel}
    )
    nbformat.write(empty, folder / "empty.ipynb")
    return folder


@pytest.fixture
def address(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], str]]:
    """A function from a notebook's name to its address in JupyterLab with the extension."""
    for name, value in extension_variables(tmp_path).items():
        monkeypatch.setenv(name, value)
    with jupyterlab(folder, tmp_path / "lab.log") as address:
        yield address


@pytest.fixture
def sockets(tmp_path: Path) -> Path:
    folder = tmp_path / f"llm-{os.getuid()}" / "services"
    folder.mkdir(parents=True, mode=0o700, exist_ok=True)
    return folder


def without_notebook(address: Callable[[str], str]) -> str:
    """Return JupyterLab's address without a notebook, and so without a kernel."""
    return address("").replace("/tree/.ipynb", "")


def wait_for_kernel(page: Any) -> None:
    """Wait until the notebook's kernel runs. A server that is starting one does not always end."""
    idle = page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").first
    idle.wait_for(state="attached", timeout=120_000)


def test_the_running_sidebar_lists_services_and_stops_them(
    address: Callable[[str], str], page: Any, sockets: Path, tmp_path: Path
) -> None:
    from playwright.sync_api import expect

    pictures = Path(os.environ.get("PICTURES", tmp_path))
    with ServicesProcess(
        sockets / "11.sock", ["llm", "spare"], dollars_per_hour=1.25, stops_in_s=840.0
    ) as process:
        page.goto(without_notebook(address))
        page.get_by_role("tab", name="Running Terminals and Kernels").click()
        rows = page.locator(".workbench-service")
        expect(rows).to_have_count(2, timeout=60_000)
        for text in (
            "llm",
            "tiny-llama-glossary",
            "2 replicas, up 12 min",
            "$1.25 per hour, stops in 14 min",
        ):
            expect(rows.first.get_by_text(text, exact=True)).to_be_visible()
        page.screenshot(path=pictures / "services.png")
        rows.first.hover()
        rows.first.get_by_title("Stop service").click()
        expect(rows).to_have_count(1, timeout=60_000)
        expect(rows).to_contain_text("spare")
        assert process.services == ["spare"]
    # The process has ended, and its services with it.
    page.get_by_role("button", name="Refresh List").click()
    expect(rows).to_have_count(0, timeout=60_000)


def test_the_launcher_has_a_card_for_each_notebook(
    address: Callable[[str], str], page: Any
) -> None:
    from playwright.sync_api import expect

    page.goto(without_notebook(address))  # JupyterLab shows its launcher then
    section = page.locator(".jp-Launcher-section", has_text="LLM serving workbench")
    cards = section.locator(".jp-LauncherCard")
    expect(cards).to_have_count(2, timeout=60_000)
    cards.filter(has_text="First endpoint").click()
    expect(page.locator(".jp-RenderedMarkdown h1", has_text="First endpoint")).to_be_visible(
        timeout=60_000
    )
    wait_for_kernel(page)


def test_a_live_view_can_have_its_notebook_saved(
    address: Callable[[str], str], page: Any, folder: Path
) -> None:
    file = folder / "empty.ipynb"
    page.goto(address("empty"))
    page.locator(".jp-RenderedMarkdown h1", has_text="Empty").wait_for(timeout=120_000)
    wait_for_kernel(page)
    before = file.stat().st_mtime_ns
    page.evaluate(
        """() => document.querySelector('.jp-Notebook').dispatchEvent(
            new CustomEvent('workbench:save', {bubbles: true}))"""
    )
    deadline = time.monotonic() + 120
    while file.stat().st_mtime_ns == before:
        assert time.monotonic() < deadline, "not saved"
        page.wait_for_timeout(200)
