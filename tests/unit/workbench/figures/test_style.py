"""Titles that mark client-limited runs, and labels of metrics."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
import pytest

from workbench.figures.style import health_of, titled, to_div
from workbench.metrics.health import ClientHealth


def title_of(health: ClientHealth | None) -> go.layout.Title:
    return titled(go.Figure(), "Requests", health).layout.title


class TestTitle:
    def test_client_limited_run_is_marked_with_its_reasons(self) -> None:
        title = title_of(ClientHealth.judge(cpu_share=0.97))
        assert title.text == "Requests - CLIENT LIMITED"
        assert "cpu_share 0.97" in title.subtitle.text

    @pytest.mark.parametrize("health", [None, ClientHealth(), ClientHealth.judge(cpu_share=0.1)])
    def test_other_runs_are_not_marked(self, health: ClientHealth | None) -> None:
        assert title_of(health).text == "Requests"

    def test_many_reasons_are_counted(self) -> None:
        reasons = tuple(f"run {i} <b>" for i in range(9))
        text = title_of(ClientHealth(client_limited=True, reasons=reasons)).subtitle.text
        assert text.endswith("run 3 &lt;b&gt;; and 5 more")


def test_health_of_a_frame_is_read_from_its_attributes() -> None:
    frame = pd.DataFrame()
    assert health_of(frame) is None
    frame.attrs["client_health"] = {"client_limited": True, "reasons": ["r"], "limited_runs": []}
    assert health_of(frame) == ClientHealth(client_limited=True, reasons=("r",))


def test_figure_html_cannot_leave_its_script() -> None:
    figure = go.Figure(layout_title_text="</script><script>alert(1)</script>")
    assert "<script>alert(1)" not in to_div(figure, with_script=False)
