"""Figures of a running notebook in JupyterLab, in a real browser. They need no engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from support.jupyterlab import jupyterlab, run_all, wait_until

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
HEIGHT = 420
SOURCE = f"""
import plotly.graph_objects as go
import workbench as wb
from workbench.figures.style import styled, titled
wb.show(titled(styled(go.Figure(go.Bar(x=[1, 2], y=[3, 4])), {HEIGHT}), "Bars"))
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a notebook with one figure."""
    folder = tmp_path_factory.mktemp("figures")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    notebook.cells = [
        nbformat.v4.new_markdown_cell("# One figure"),
        nbformat.v4.new_code_cell(SOURCE.strip()),
    ]
    nbformat.write(notebook, folder / "figure.ipynb")
    with jupyterlab(folder, Path(folder / "lab.log")) as address_of:
        yield address_of("figure")


def size(page: Any) -> tuple[float, float]:
    """Return the width and the height of the drawn figure in pixels."""
    box = page.locator(".jp-OutputArea .js-plotly-plot .main-svg").first.bounding_box()
    return box["width"], box["height"]


def test_height_survives_every_resize(page: Any, address: str) -> None:
    run_all(page, address, "One figure")
    page.locator(".jp-OutputArea .js-plotly-plot .main-svg").first.wait_for(timeout=120_000)
    wide, height = size(page)
    assert height == HEIGHT

    page.keyboard.press("Control+b")  # the side bar
    wait_until(page, lambda: abs(size(page)[0] - wide) > 50, "another width", timeout_s=20)
    assert size(page)[1] == HEIGHT

    for width, high in ((1600, 1000), (900, 600), (1280, 1000)):
        before = size(page)[0]
        page.set_viewport_size({"width": width, "height": high})
        wait_until(page, lambda old=before: size(page)[0] != old, "another width", timeout_s=20)
        page.wait_for_timeout(500)
        assert size(page)[1] == HEIGHT, f"at {width} x {high}"
