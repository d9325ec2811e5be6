"""JupyterLab and Chromium: starting them, acting like a user, and reading figures."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import nbformat
from support.processes import end_process

from serving.cluster.ports import free_port

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DEFAULT_TIMEOUT_MS = 60_000
"""Limit of each action and expectation in the browser, which a busy machine delays."""
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


@contextmanager
def jupyterlab(folder: Path, log: Path, *options: str) -> Iterator[Callable[[str], str]]:
    """Run JupyterLab on a folder; yield a function from a notebook's name to its address."""
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
        end_process(server)


@contextmanager
def chromium_page() -> Iterator[Any]:
    """Yield a page of 1280 x 1000 pixels in headless Chromium."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=DEFAULT_TIMEOUT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=FLAGS, timeout=3 * DEFAULT_TIMEOUT_MS
        )
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(DEFAULT_TIMEOUT_MS)
        page.set_default_navigation_timeout(2 * DEFAULT_TIMEOUT_MS)
        yield page
        browser.close()


def set_parameters(path: Path, parameters: dict[str, Any]) -> None:
    """Write other values into the cell of parameters, as a user would."""
    notebook = nbformat.read(path, as_version=4)
    cell = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    lines = cell.source.splitlines()
    for name, value in parameters.items():
        (number,) = [i for i, line in enumerate(lines) if line.startswith(f"{name} = ")]
        lines[number] = f"{name} = {value!r}"
    cell.source = "\n".join(lines)
    nbformat.write(notebook, path)


def wait_for_port(port: int) -> None:
    """Wait until something listens on a local port, for at most two minutes."""
    deadline = time.monotonic() + 120
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < deadline, "JupyterLab did not start"
        time.sleep(0.2)


def run_all(page: Any, address: str, title: str) -> None:
    """Open the notebook and run all cells from the menu."""
    from playwright.sync_api import TimeoutError as NothingSeen

    page.goto(address)
    heading = page.locator(".jp-RenderedMarkdown h1", has_text=title)
    heading.wait_for(timeout=120_000)
    # In a narrow toolbar JupyterLab hides the indicator.
    idle = page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").first
    idle.wait_for(state="attached", timeout=120_000)
    news = page.get_by_role("button", name="No", exact=True)
    if news.count():  # JupyterLab asks in a dialog whether to fetch news
        news.click()
    heading.click()  # The menu acts on the notebook in use, which may be one that was open before.
    begun = page.locator(".jp-CodeCell .jp-InputPrompt", has_text=re.compile(r"\[(\*|\d+)\]"))
    for _ in range(3):
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        # On a busy machine JupyterLab once ran no cell, with an idle kernel.
        with suppress(NothingSeen):
            begun.first.wait_for(timeout=20_000)
            return
    raise AssertionError("JupyterLab ran no cell")


def wait_for_output(page: Any, selector: str, *, timeout_s: float) -> None:
    """Wait until something in the notebook is visible. Fail at once if a cell fails."""
    error = page.locator(".jp-OutputArea-output[data-mime-type*='error']")
    page.locator(selector).or_(error).first.wait_for(timeout=timeout_s * 1000)
    assert error.count() == 0, error.first.inner_text()


def trace(page: Any, name: str) -> tuple[list[float], list[float]]:
    """Return times and values of a trace as the browser shows it in the dashboard's figure.

    Gaps, where a busy machine has taken no sample, are left out.
    """
    script = """name => {
        const figure = document.querySelector('.workbench-dashboard .js-plotly-plot');
        const trace = figure?.data?.find(trace => trace.name === name);
        return [Array.from(trace?.x ?? []), Array.from(trace?.y ?? [])];
    }"""
    times, values = page.evaluate(script, name)
    known = [i for i, value in enumerate(values) if value is not None]
    return [times[i] for i in known], [values[i] for i in known]


def wait_until(page: Any, condition: Any, description: str, *, timeout_s: float) -> None:
    """Wait until `condition()` is true, checked once a second."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not reached in {timeout_s:g} s: {description}"
        page.wait_for_timeout(1000)
