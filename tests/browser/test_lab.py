"""Notebook 00 in JupyterLab in a real browser, with the shared service.

`test_dashboard.py` runs a notebook there that deploys.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.jupyterlab import run_all, wait_for_output

pytestmark = [pytest.mark.browser, pytest.mark.engine, pytest.mark.timeout(900)]


def test_first_endpoint_runs_in_jupyterlab(
    url: str, lab: Callable[..., str], page: Any, tmp_path: Path
) -> None:
    from playwright.sync_api import expect

    pictures = Path(os.environ.get("PICTURES", tmp_path))
    run_all(page, lab("00_first_endpoint", address=url), "First endpoint")
    report = ".jp-OutputArea-output:has-text('report.html')"
    wait_for_output(page, report, timeout_s=600)
    figure = page.locator(".js-plotly-plot").first
    figure.scroll_into_view_if_needed()
    expect(figure.locator(".gtitle").first).to_be_visible()
    bars = figure.locator(".bars .point")
    assert bars.count() >= 32
    figure.screenshot(path=pictures / "first-endpoint.png")
    page.screenshot(path=pictures / "lab.png")
