"""Figures of a running notebook in JupyterLab, in a real browser. They need no engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from support.jupyterlab import jupyterlab, run_all, wait_for_output, wait_until

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
HEIGHT = 420
SOURCE = f"""
import plotly.graph_objects as go
import workbench as wb
from workbench.figures.style import styled, titled
wb.show(titled(styled(go.Figure(go.Bar(x=[1, 2], y=[3, 4])), {HEIGHT}), "Bars"))
"""
DASHBOARD = """
from pydantic import SecretStr
import workbench as wb
from workbench.dashboard import controller
from workbench.endpoints.remote import Remote
from workbench.runs.run import Run
controller.context_length = lambda endpoint: 128  # nothing answers at the endpoint
load = wb.LoadSpec(arrivals=wb.Poisson(rate=1), prompts=wb.RandomPrompts(input=8, output=8))
endpoint = Remote("http://127.0.0.1:9/v1", SecretStr("sk-x"), ["m"], "tiny")
dashboard = wb.Dashboard(endpoint, load, Run.create("runs", {}), live=True)
dashboard.show()
"""
AT_THE_END = """
dashboard.view.show_message("The last line")
dashboard._save_picture(dashboard.view)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a notebook of a figure, and one of a dashboard."""
    folder = tmp_path_factory.mktemp("figures")
    write(folder / "figure.ipynb", "One figure", SOURCE)
    write(folder / "dashboard.ipynb", "One dashboard", DASHBOARD, AT_THE_END)
    return folder


@pytest.fixture(scope="module")
def address_of(folder: Path) -> Iterator[Callable[[str], str]]:
    """A function from the name of a notebook to its address in JupyterLab."""
    with jupyterlab(folder, folder / "lab.log") as address_of:
        yield address_of


def write(path: Path, title: str, *cells: str) -> None:
    """Write a notebook with a title and code cells."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    notebook.cells = [nbformat.v4.new_markdown_cell(f"# {title}")]
    notebook.cells += [nbformat.v4.new_code_cell(cell.strip()) for cell in cells]
    nbformat.write(notebook, path)


def size(page: Any) -> tuple[float, float]:
    """Return the width and the height of the drawn figure in pixels."""
    box = page.locator(".jp-OutputArea .js-plotly-plot .main-svg").first.bounding_box()
    return box["width"], box["height"]


def test_height_survives_every_resize(page: Any, address_of: Callable[[str], str]) -> None:
    run_all(page, address_of("figure"), "One figure")
    page.locator(".jp-OutputArea .js-plotly-plot .main-svg").first.wait_for(timeout=120_000)
    wide, height = size(page)
    assert height == HEIGHT

    page.keyboard.press("Control+b")  # the side bar
    wait_until(page, lambda: abs(size(page)[0] - wide) > 50, "another width", timeout_s=60)
    assert size(page)[1] == HEIGHT

    for width, high in ((1600, 1000), (900, 600), (1280, 1000)):
        before = size(page)[0]
        page.set_viewport_size({"width": width, "height": high})
        wait_until(page, lambda old=before: size(page)[0] != old, "another width", timeout_s=60)
        page.wait_for_timeout(500)
        assert size(page)[1] == HEIGHT, f"at {width} x {high}"


def test_saved_notebook_has_a_picture_and_the_widgets_stay(
    page: Any, address_of: Callable[[str], str], folder: Path
) -> None:
    run_all(page, address_of("dashboard"), "One dashboard")
    status = ".workbench-dashboard [role=status]:has-text('The last line')"
    wait_for_output(page, status, timeout_s=120)
    page.locator(".workbench-dashboard .js-plotly-plot .main-svg").first.wait_for(timeout=60_000)

    bundle: dict[str, Any] = {}

    def saved() -> bool:
        page.keyboard.press("Control+s")
        try:
            cells = nbformat.read(folder / "dashboard.ipynb", as_version=4).cells
        except nbformat.reader.NotJSONError:  # JupyterLab is writing it
            return False
        bundles = [output["data"] for cell in cells for output in cell.get("outputs", [])]
        bundle.update(next((data for data in bundles if "text/html" in data), {}))
        return bool(bundle)

    wait_until(page, saved, "a picture in the file", timeout_s=120)
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert "The last line" in bundle["text/html"]
    assert page.locator(".workbench-dashboard button", has_text="Stop").count() == 1
