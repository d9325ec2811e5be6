"""Notebooks as pages without code: `workbench app` with Voilà in an environment of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from support import scripts
from support.jupyterlab import CHROMIUM, chromium_page, trace, wait_until
from support.paths import ROOT
from support.scripted_server import ScriptedServer, threaded, tokens

from workbench.runs.run import Run

CLIENTS = scripts.load("clients")
pytestmark = [
    pytest.mark.clients,
    pytest.mark.browser,
    pytest.mark.timeout(600),
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is missing: make browser"),
    pytest.mark.skipif(
        CLIENTS.skip_reason("voila") is not None, reason=str(CLIENTS.skip_reason("voila"))
    ),
]
SHORT = {"peak_rate": 4.0, "ramp_s": 5.0, "hold_s": 1200.0, "input_tokens": 16, "output_tokens": 8}
Serve = Callable[..., str]


@contextmanager
def running_app(*arguments: str, runs: Path) -> Iterator[str]:
    """Run `workbench app`, and yield the address that it prints, which has the token."""
    voila = CLIENTS.ENVIRONMENTS / "voila" / "bin"
    env = os.environ | {"PATH": f"{voila}{os.pathsep}{os.environ['PATH']}"}
    env |= {"PYTHONPATH": str(ROOT), "WORKBENCH_RUNS": str(runs), "LLM_WORKBENCH_API_KEY": "sk-x"}
    command = [sys.executable, "-m", "workbench", "app", *arguments, "--no-browser"]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        yield next(line.split()[-1] for line in lines if line.startswith("page"))
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert psutil.wait_procs(children, timeout=60)[1] == []


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """A function from the arguments of `workbench app` to the page's address."""
    with ExitStack() as ends:
        yield lambda *arguments: ends.enter_context(running_app(*arguments, runs=tmp_path / "runs"))


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    """A page in Chromium, which must ask no other host for anything."""
    requested: list[str] = []
    with chromium_page() as page:
        page.on("request", lambda request: requested.append(request.url))
        yield page
        page.screenshot(path=tmp_path / "last.png", full_page=True)  # shows a failure
    here = ("http://127.0.0.1", "data:", "blob:", "about:")
    assert [url for url in requested if not url.startswith(here)] == []


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    """An endpoint that serves "tiny"; its log is the truth."""
    answers = {chat: tokens(8, ttft_s=0.05, gap_s=0.01, chat=chat) for chat in (True, False)}
    with threaded(lambda body, n: answers["messages" in body]) as server:
        server.models = ["tiny"]
        yield server


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    """A notebook that shows where it runs, and whose second cell fails."""
    parameters = nbformat.v4.new_code_cell('word = "default"', metadata={"tags": ["parameters"]})
    first = "import os, sys\nprint(word, os.getcwd(), sys.prefix)\nprint('process', os.getpid())"
    sources = [first, "1 / 0", "print('after')"]
    cells = [nbformat.v4.new_markdown_cell("# A page"), parameters]
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    path = tmp_path / "page.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def test_notebook_02_is_a_page_with_live_controls_and_without_code(
    serve: Serve, page: Any, server: ScriptedServer, tmp_path: Path
) -> None:
    parameters = SHORT | {"address": server.base_url, "run_id": "page"}
    given = [text for name, value in parameters.items() for text in ("-p", name, str(value))]
    page.goto(serve("02", *given))
    page.locator(".jp-RenderedMarkdown h1", has_text="Watch autoscaling").wait_for(timeout=120_000)
    page.locator(".workbench-dashboard .js-plotly-plot .main-svg").first.wait_for(timeout=300_000)
    wait_until(page, lambda: max(trace(page, "Completed")[1], default=0) > 0, "load", timeout_s=120)
    number = page.locator("[aria-label='Rate, requests/s, as a number']")
    number.fill("6.5")
    number.press("Enter")
    wait_until(page, lambda: trace(page, "Offered")[1][-1] == 6.5, "the rate", timeout_s=60)
    page.locator(".workbench-dashboard button", has_text="Stop").click()
    report = page.locator(".jp-OutputArea-output", has_text="report.html")
    report.wait_for(timeout=240_000)

    run = Run.open(tmp_path / "runs" / "page")
    assert 0 < len(list(run.records())) == len(server.log)
    assert [change.what for change in run.changes()] == ["start", "rate", "end"]
    figures = page.locator(".js-plotly-plot .main-svg").count()
    assert figures >= 2, "the dashboard and the timeline of the run"
    assert page.locator(".jp-InputArea-editor").count() == 0
    assert "wb.ServiceSpec" not in page.content()


def test_an_error_ends_the_notebook_and_leaving_the_page_its_kernel(
    serve: Serve, page: Any, notebook: Path
) -> None:
    page.goto(serve(str(notebook), "-p", "word", "replaced"))
    page.get_by_text(f"replaced {notebook.parent} {sys.prefix}").wait_for(timeout=120_000)
    page.get_by_text("ZeroDivisionError: division by zero").wait_for(timeout=60_000)
    waiting = page.locator(".voila-skeleton-container:visible")
    wait_until(page, lambda: waiting.count() == 0, "the end of the notebook", timeout_s=60)
    assert page.get_by_text("after").count() == 0
    assert "1 / 0" not in page.content()
    assert "Traceback" not in page.content()
    (number,) = re.findall(r"process (\d+)", page.inner_text("body"))
    kernel = psutil.Process(int(number))
    page.goto("about:blank")
    wait_until(page, lambda: not kernel.is_running(), "the end of the kernel", timeout_s=60)


def test_without_the_token_nothing_is_shown(serve: Serve, notebook: Path) -> None:
    address = serve(str(notebook)).partition("?")[0]
    with urllib.request.urlopen(address, timeout=120) as answer:
        assert "/login?" in answer.url
        assert b"A page" not in answer.read()
