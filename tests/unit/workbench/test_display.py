"""What a saved notebook holds of its figures: data, and HTML with plotly.js in one cell."""

from __future__ import annotations

import json
import re
from typing import Any

import plotly.graph_objects as go
import pytest

from workbench import display
from workbench.display import StaticFigure, show

FIGURE = go.Figure(go.Bar(x=[1, 2], y=[3, 4], name="bars"))


class TestShow:
    @pytest.fixture(autouse=True)
    def fresh(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(StaticFigure, "_script_cell", None)

    def bundle(self, cell: str, monkeypatch: pytest.MonkeyPatch, count: int = 1) -> dict[str, Any]:
        monkeypatch.setattr(display, "_current_cell", lambda: (cell, count))
        return show(FIGURE)._repr_mimebundle_()

    def test_one_cell_includes_the_script(self, monkeypatch: pytest.MonkeyPatch) -> None:
        executions = [("a", 1), ("a", 1), ("b", 2), ("c", 3), ("a", 4), ("b", 5)]
        sizes = [len(self.bundle(cell, monkeypatch, n)["text/html"]) for cell, n in executions]
        with_script = [size > 4_000_000 for size in sizes]
        assert with_script == [True, False, False, False, True, False]
        assert sizes[1] < 50_000

    def test_first_figure_includes_the_script_where_the_cell_is_unknown(self) -> None:
        sizes = [len(show(FIGURE)._repr_mimebundle_()["text/html"]) for _ in "ab"]
        assert [size > 4_000_000 for size in sizes] == [True, False]

    def test_bundle_has_data_and_html_without_a_network(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bundle = self.bundle("a", monkeypatch)
        data = bundle["application/vnd.plotly.v1+json"]
        assert {"data", "layout", "config"} <= set(data)
        json.dumps(data)
        for text in (bundle["text/html"], self.bundle("b", monkeypatch)["text/html"]):
            assert not re.search(r"<(script|link|img)[^>]+(src|href)=", text)

    def test_nbconvert_shows_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        nbformat = pytest.importorskip("nbformat")
        nbconvert = pytest.importorskip("nbconvert")
        outputs = [
            nbformat.v4.new_output("display_data", data=self.bundle(cell, monkeypatch))
            for cell in "ab"
        ]
        book = nbformat.v4.new_notebook()
        book.cells = [nbformat.v4.new_code_cell("x", outputs=[output]) for output in outputs]
        page, _ = nbconvert.HTMLExporter().from_notebook_node(book)
        assert page.count('class="plotly-graph-div"') == 2
        assert page.count("* plotly.js v") == 1
