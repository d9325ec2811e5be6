"""The report as text, and as Chromium shows it without a network."""

from __future__ import annotations

import dataclasses
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from workbench.claims.claim import Claim, RunInfo, evaluate_claim, write_verdicts
from workbench.figures.latency import latency_distributions
from workbench.figures.requests import request_timeline
from workbench.metrics.health import ClientHealth
from workbench.metrics.slo import SLO
from workbench.metrics.summary import summarize
from workbench.records import RequestRecord
from workbench.report import write_report
from workbench.runs.run import Run

RECORD = RequestRecord(
    request_id="r",
    scheduled_s=0.0,
    sent_s=0.0,
    first_token_s=0.25,
    end_s=1.0,
    token_times_s=(0.25, 0.5, 1.0),
    prompt_tokens=10,
    output_tokens=3,
    status="ok",
    error=None,
    model="m",
    tenant=None,
)
EVIL = "<script>alert('x')</script>"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run.create(tmp_path, {"rate": 2.5, "seed": 42, "model": {"name": EVIL}}, run_id="one")
    for i in range(8):
        later: dict[str, Any] = {
            "sent_s": i / 4,
            "scheduled_s": i / 4,
            "end_s": i / 4 + 1,
            "request_id": f"r{i}",
        }
        times = tuple(i / 4 + t for t in (0.25, 0.5, 1.0))
        moved: dict[str, Any] = {
            "first_token_s": times[0],
            "token_times_s": times,
            "tenant": EVIL if i else None,
        }
        run.append_request(dataclasses.replace(RECORD, **later, **moved))
    return run


def written(run: Run, **options: Any) -> str:
    frame = run.requests_frame()
    figures = {"timeline": request_timeline(frame), "latency": latency_distributions(frame)}
    page = write_report(run, figures, title=options.pop("title", "A title"), **options)
    assert page == run.path / "report.html"
    return page.read_text(encoding="utf-8")


def without_scripts(page: str) -> str:
    return re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


class TestReport:
    def test_it_has_parameters_versions_and_results(self, run: Run) -> None:
        run.finish(summarize(run.records(), slo=SLO(ttft_ms=300)))
        text = without_scripts(written(run, command="papermill -p rate 2.5"))
        for expected in ("A title", "Run one", "seed 42", "papermill -p rate 2.5", "rate", "2.5"):
            assert expected in text
        for package, version in run.document["versions"].items():
            assert package in text
            assert version in text
        assert run.document["hardware"]["cpu"] in text
        assert run.summary().headline() in text
        assert "yes: 100.00% (target 99%)" in text
        assert "<td>250</td>" in text, "the mean TTFT"

    def test_missed_slo_is_marked(self, run: Run) -> None:
        run.finish(summarize(run.records(), slo=SLO(ttft_ms=10)))
        assert '<td class="bad">NO: 0.00% (target 99%)' in written(run)

    def test_claims_come_first_with_their_reasons(self, run: Run) -> None:
        place = RunInfo.from_run(run, model="m", accelerator="cpu")
        claim = Claim(name="10x the users", figure="users", goal=10)
        pairs = [(40.0, 20.0), (42.0, 20.0), (44.0, 20.0)]
        judged = evaluate_claim(claim, EVIL, pairs, where=place, rng=np.random.default_rng(0))
        write_verdicts(run, [judged])
        text = without_scripts(written(run))
        assert "10x the users against &lt;script&gt;" in text
        assert f'<td class="bad">FAIL: {judged.reason}' in text
        assert text.index("Claims") < text.index("Latency")

    def test_client_limited_run_is_marked(self, run: Run) -> None:
        run.finish(summarize(run.records(), health=ClientHealth.judge(cpu_share=0.95)))
        page = written(run)
        assert "CLIENT LIMITED: the client affected these figures" in page
        assert "cpu_share 0.95 exceeds 0.9" in page
        assert "ms (client limited)" in page
        assert page.count("CLIENT LIMITED") >= 4, "in the banner, the headline and both figures"

    def test_all_text_is_escaped(self, run: Run) -> None:
        page = written(run, title=EVIL, command=EVIL)
        assert EVIL not in page
        assert "&lt;script&gt;alert(" in page

    def test_secrets_in_the_command_are_not_shown(self, run: Run) -> None:
        page = written(run, command="run --key sk-hushhushhushhush12")
        assert "hush" not in page

    def test_requests_left_out_of_a_trace_are_shown(self, run: Run) -> None:
        workload = {"skipped": {"longer than the context": 17}, "notes": [EVIL]}
        run.finish(summarize(run.records()).model_copy(update={"workload": workload}))
        text = without_scripts(written(run))
        assert "<h2>Workload</h2>" in text
        assert re.search(r"skipped\.longer than the context</td>\s*<td>17</td>", text)
        assert EVIL not in text

    def test_unfinished_run_has_a_report(self, run: Run) -> None:
        assert "8 completed" in written(run)

    def test_report_without_figures(self, tmp_path: Path) -> None:
        empty = Run.create(tmp_path, {}, run_id="empty")
        text = write_report(empty, {}, title="t").read_text()
        assert "0 completed" in text

    def test_it_needs_no_network_and_has_one_script(self, run: Run) -> None:
        page = written(run)
        assert page.count("plotly.js (cartesian") == 1
        assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=", page)
        assert "default-src 'none'" in page

    def test_it_is_at_most_two_megabytes(self, run: Run) -> None:
        assert len(written(run).encode()) < 2_000_000

    def test_tiles_come_first_and_parameters_are_folded(self, run: Run) -> None:
        run.finish(summarize(run.records(), slo=SLO(ttft_ms=300)))
        page = without_scripts(written(run, tables={"A table": pd.DataFrame({"n": [1.23456]})}))
        places = [
            page.index(text)
            for text in ('class="tiles"', "8 requests ended", "plotly-graph-div", "A table")
        ]
        assert places == sorted(places)
        assert '<div class="tile good"><span>SLO attainment</span>\n<strong>100%' in page
        assert "<strong>8 / 0 / 0</strong>" in page
        assert "<td>1.23</td>" in page
        assert "<details><summary>Parameters</summary>" in page

    def test_changed_parameters_are_above_all(self, tmp_path: Path) -> None:
        parameters = {"rate": 3.0, "seed": 0, "source": EVIL, "run_id": "x"}
        run = Run.create(tmp_path, {"parameters": parameters}, run_id="two")
        defaults = {"rate": 2.0, "seed": 0, "source": "tiny", "run_id": ""}
        page = without_scripts(write_report(run, {}, title="t", defaults=defaults).read_text())
        assert page.index("Changed from the default") < page.index("<summary>Parameters")
        changed = page[page.index("Changed from the default") : page.index("<details>")]
        assert "3.0 (default 2.0)" in changed
        assert "(default tiny)" in changed
        assert "seed" not in changed
        assert "run_id" not in changed
        assert EVIL not in page

    def test_figure_beyond_the_small_script_gets_the_whole(self, run: Run) -> None:
        page = write_report(run, {"pie": go.Figure(go.Pie(values=[1, 2]))}, title="t").read_text()
        assert len(page) > 4_000_000

    def test_its_tags_are_balanced(self, run: Run) -> None:
        run.finish(summarize(run.records(), slo=SLO(ttft_ms=10)))
        open_tags: list[str] = []

        class Check(HTMLParser):
            def handle_starttag(self, tag: str, attrs: Any) -> None:
                if tag not in ("meta", "br", "link"):
                    open_tags.append(tag)

            def handle_endtag(self, tag: str) -> None:
                assert open_tags.pop() == tag

        Check().feed(written(run))
        assert open_tags == []


@pytest.mark.browser
def test_chromium_shows_it_without_a_network(run: Run) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("Chromium is missing: make browser")
    run.finish(summarize(run.records()))
    written(run)
    urls: list[str] = []
    messages: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.on("request", lambda request: urls.append(request.url))
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.goto(f"file://{run.path / 'report.html'}")
        page.wait_for_selector(".plotly-graph-div .main-svg")
        bars = page.locator(".plotly-graph-div .main-svg .barlayer").count()
        width = page.evaluate("document.documentElement.scrollWidth")
        browser.close()
    assert bars >= 1
    assert messages == []
    assert [url for url in urls if not url.startswith(("file:", "data:", "blob:"))] == []
    assert width <= 1280, "the page does not scroll sideways"
