"""The docs site as a whole: it is built, its links lead somewhere, and its figures are drawn."""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from support.jupyterlab import chromium_page
from support.paths import NOTEBOOKS, ROOT
from support.scripts import load

SITE = ROOT / "build" / "site"
GALLERY = ROOT / "docs" / "gallery"
STORED = sorted(path.name.split(".")[0] for path in GALLERY.glob("*.gz"))
DECK = "docs/slides/workshop.html"
BUILD_TIMEOUT_S = 600
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Page(HTMLParser):
    """What a page links to, loads, and can be linked to by."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if "src" in values:
            self.loaded.append(values["src"])
        if tag == "link" and values.get("rel") in ("stylesheet", "icon"):
            self.loaded.append(values["href"])


@pytest.fixture(scope="module")
def site() -> Path:
    """The site, built as `make docs` does."""
    docs = load("docs")
    try:
        docs.install(docs.LOCK, docs.ENVIRONMENT)
    except docs.PipError as error:
        pytest.skip(f"MkDocs cannot be installed: {error}")
    built = subprocess.run(
        [sys.executable, "scripts/docs.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT_S,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return SITE


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """The address of a server of the site."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_every_internal_link_leads_to_a_page_and_an_anchor(pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        if path.name == "404.html":  # its links start at the root of a server
            continue
        for link in page.links:
            url = urlsplit(link)
            if url.scheme:
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            known = pages.get(target)
            anchored = known is None or url.fragment in known.anchors | {""}
            if not target.is_file() or not (anchored or path.name == "workshop.html"):
                broken.append(f"{path.relative_to(SITE)}: {link}")
    assert broken == []


def test_pages_load_nothing_from_a_network(pages: dict[Path, Page]) -> None:
    loaded = {url for page in pages.values() for url in page.loaded}
    assert any(url.endswith("plotly.js") for url in loaded)
    schemes = {urlsplit(url).scheme or urlsplit(url).netloc for url in loaded}
    assert schemes <= {"", "data"}


def test_every_notebook_has_a_page_with_its_figures(site: Path) -> None:
    total = 0  # Some notebooks have tables only.
    for notebook in sorted(NOTEBOOKS.glob("*.ipynb")):
        text = (site / "notebooks" / f"{notebook.stem}.html").read_text(encoding="utf-8")
        if notebook.stem in STORED:
            stored = gzip.decompress((GALLERY / f"{notebook.name}.gz").read_bytes())
            figures = stored.count(b'"application/vnd.plotly.v1+json":')
            assert text.count('<div class="figure"') == figures, notebook.stem
            total += figures
        else:
            assert "No run of this notebook is stored" in text or '<div class="figure"' in text
    assert total > 0 or not STORED


@pytest.mark.browser
def test_figures_diagrams_and_slides_are_drawn_without_a_network(address: str) -> None:
    with chromium_page() as page:
        requested: list[str] = []
        page.on("request", lambda request: requested.append(request.url))
        page.goto(f"{address}/docs/architecture.html")
        page.locator("div.mermaid").first.wait_for(timeout=60_000)
        for name in STORED:
            page.goto(f"{address}/notebooks/{name}.html")
            draw_all(page)
        page.goto(f"{address}/{DECK}#/3")
        drawn = page.locator("section.present .figure .main-svg").first
        drawn.wait_for(timeout=60_000)
        assert drawn.bounding_box()["width"] > 600
        assert page.locator(".reveal .slides > section").count() > 8
        assert [url for url in requested if not url.startswith((address, "data:", "blob:"))] == []


@pytest.mark.browser
@pytest.mark.skipif(not STORED, reason="no run of a notebook is stored")
def test_figures_have_the_colour_of_the_theme(address: str) -> None:
    with chromium_page() as page:
        page.goto(f"{address}/notebooks/{STORED[0]}.html")
        draw_all(page)
        light = colours(page)
        page.locator("label[title='Dark theme']").click()
        changed = "light => document.querySelector('.figure')._fullLayout.font.color !== light"
        page.wait_for_function(changed, arg=light[1])
        dark = colours(page)
        assert light[0] == light[1]
        assert dark[0] == dark[1]


def colours(page: Any) -> list[str]:
    """Return the colour that the page gives to figures, and the one that the first one has."""
    script = """figure => [getComputedStyle(figure).color, figure._fullLayout.font.color]"""
    return list(page.locator(".figure").first.evaluate(script))


def draw_all(page: Any) -> None:
    """Scroll to each figure of a page, and wait until it is drawn."""
    for figure in page.locator(".figure").all():
        figure.scroll_into_view_if_needed()
        figure.locator(".main-svg").first.wait_for(timeout=60_000)
