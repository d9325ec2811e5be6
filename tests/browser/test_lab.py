"""Notebook 00 by hand: a real JupyterLab in a real browser, against the real engine."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.engine, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    """JupyterLab on a copy of the notebooks; yields the address of notebook 00."""
    folder = tmp_path / "notebooks"
    shutil.copytree(ROOT / "notebooks", folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--port={port}", "--ServerApp.port_retries=0", f"--notebook-dir={folder}"]
    command += ["--LabApp.news_url=None"]
    with (tmp_path / "lab.log").open("wb") as log:
        server = subprocess.Popen(
            command,
            env={**os.environ, "JUPYTER_TOKEN": token},
            stdout=log,
            stderr=log,
        )
    try:
        wait_for_port(port)
        yield f"http://127.0.0.1:{port}/lab/tree/00_first_endpoint.ipynb?token={token}"
    finally:
        server.terminate()
        server.wait(timeout=30)


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < deadline, "JupyterLab did not start"
        time.sleep(0.2)


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is missing: make browser")
def test_first_endpoint_runs_in_jupyterlab(lab: str, tmp_path: Path) -> None:
    from playwright.sync_api import expect, sync_playwright

    pictures = Path(os.environ.get("PICTURES", tmp_path))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(lab)
        page.locator(".jp-RenderedMarkdown h1", has_text="First endpoint").wait_for(timeout=60_000)
        page.locator(".jp-KernelStatus-success, [data-status=idle]").first.wait_for(timeout=60_000)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        report = page.locator(".jp-OutputArea-output", has_text="report.html")
        expect(report).to_be_visible(timeout=240_000)
        assert page.locator(".jp-OutputArea-output[data-mime-type*='error']").count() == 0
        figure = page.locator(".js-plotly-plot").first
        figure.scroll_into_view_if_needed()
        expect(figure.locator(".gtitle").first).to_be_visible()
        bars = figure.locator(".bars .point")
        assert bars.count() >= 32
        figure.screenshot(path=pictures / "first-endpoint.png")
        page.screenshot(path=pictures / "lab.png")
        browser.close()
