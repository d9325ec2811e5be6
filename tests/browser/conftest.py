"""JupyterLab on a copy of the notebooks, and Chromium, for tests that act like a user."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.jupyterlab import CHROMIUM, chromium_page, jupyterlab, set_parameters
from support.paths import ROOT


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """A function that sets parameters in a notebook and returns its address in JupyterLab."""
    folder = tmp_path / "notebooks"
    shutil.copytree(ROOT / "notebooks", folder)
    with jupyterlab(folder, tmp_path / "lab.log") as address:

        def open_notebook(name: str, **parameters: Any) -> str:
            run_root = str(tmp_path / "runs")
            set_parameters(folder / f"{name}.ipynb", {"run_root": run_root} | parameters)
            return address(name)

        yield open_notebook


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    """A page of 1280 x 1000 pixels in headless Chromium."""
    if CHROMIUM is None:
        pytest.skip("Chromium is missing: make browser")
    with chromium_page() as page:
        yield page
        page.screenshot(path=tmp_path / "last.png")  # shows a failure
