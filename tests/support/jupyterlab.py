"""JupyterLab and Chromium, what a person does there, and what one sees."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat

from serving.cluster.ports import free_port

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


@contextmanager
def jupyterlab(folder: Path, log: Path, *options: str) -> Iterator[Callable[[str], str]]:
    """JupyterLab on a folder, for the length of a `with`: from a notebook's name to its address."""
    port = free_port()
    token = secrets.token_hex(16)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--port={port}", "--ServerApp.port_retries=0", f"--notebook-dir={folder}"]
    command += ["--LabApp.news_url=None", *options]
    with log.open("wb") as out:
        server = subprocess.Popen(
            command, env={**os.environ, "JUPYTER_TOKEN": token}, stdout=out, stderr=out
        )
    try:
        wait_for_port(port)
        yield lambda name: f"http://127.0.0.1:{port}/lab/tree/{name}.ipynb?token={token}"
    finally:
        server.terminate()
        server.wait(timeout=30)


@contextmanager
def chromium_page() -> Iterator[Any]:
    """A page of 1280 pixels in headless Chromium, for the length of a `with`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser.new_page(viewport={"width": 1280, "height": 1000})
        browser.close()


def set_parameters(path: Path, parameters: dict[str, Any]) -> None:
    """Write other values into the cell of parameters, as a person would."""
    notebook = nbformat.read(path, as_version=4)
    cell = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    lines = cell.source.splitlines()
    for name, value in parameters.items():
        (number,) = [i for i, line in enumerate(lines) if line.startswith(f"{name} = ")]
        lines[number] = f"{name} = {value!r}"
    cell.source = "\n".join(lines)
    nbformat.write(notebook, path)


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 120
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < deadline, "JupyterLab did not start"
        time.sleep(0.2)


def run_all(page: Any, address: str, title: str) -> None:
    """Open the notebook and run all of its cells from the menu."""
    page.goto(address)
    page.locator(".jp-RenderedMarkdown h1", has_text=title).wait_for(timeout=120_000)
    # In a narrow toolbar JupyterLab folds the indicator away.
    idle = page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").first
    idle.wait_for(state="attached", timeout=120_000)
    news = page.get_by_role("button", name="No", exact=True)
    if news.count():  # JupyterLab asks, in front of everything, whether it may tell news
        news.click()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def trace(page: Any, name: str) -> tuple[list[float], list[float]]:
    """Times and values of a curve as the browser has drawn it in the dashboard's figure."""
    script = """name => {
        const figure = document.querySelector('.workbench-dashboard .js-plotly-plot');
        const curve = figure._fullData.find(one => one.name === name);
        return [Array.from(curve.x ?? []), Array.from(curve.y ?? [])];
    }"""
    times, values = page.evaluate(script, name)
    return times, values


def wait_until(page: Any, holds: Any, what: str, *, timeout_s: float) -> None:
    """Look once a second until `holds()`; what a person who waits would do."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s in vain: {what}"
        page.wait_for_timeout(1000)
