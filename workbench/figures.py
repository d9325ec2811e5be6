"""Frames in, plotly figures out; pure but for `render`, which shows one in a notebook.

Frames are those of `Run.requests_frame` and `Run.telemetry`. Colours are Okabe and Ito's, which
colour-blind readers can tell apart, on a transparent ground that suits light and dark themes. A
figure has few traces and bounded points, whatever the number of requests. A figure of a run that
the client limited says so in its title; the verdict is taken from `health`, or from
`attrs["client_health"]` of the frame.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from numpy.typing import NDArray

    from workbench.metrics import ClientHealth

ORANGE, SKY, GREEN, BLUE = "#E69F00", "#56B4E9", "#009E73", "#0072B2"
VERMILLION, PURPLE, GREY = "#D55E00", "#CC79A7", "#808080"
_GRID = "rgba(128,128,128,0.25)"
_MOST_BARS, _MOST_POINTS, _BINS = 1000, 500, 100

_HOVER = (
    "request %{customdata[0]}: %{customdata[1]}<br>sent %{customdata[2]} s<br>"
    "TTFT %{customdata[3]} ms, E2EL %{customdata[4]} ms<br>%{customdata[5]} output tokens"
    "<br>%{customdata[6]}<extra>%{fullData.name}</extra>"
)


def request_timeline(
    requests: pd.DataFrame,
    telemetry: pd.DataFrame | None = None,
    *,
    health: ClientHealth | None = None,
    deployment: str | None = None,
) -> go.Figure:
    """Every request as a bar over time: waiting, then streaming; failures hatched and crossed.

    With `telemetry`, a second row on the same axis has the replicas: running and starting stacked,
    and the autoscaler's target as a line, summed over deployments or of one `deployment`. Past
    1,000 requests, evenly chosen ones are shown and the title says so.
    """
    replicas = telemetry is not None and not telemetry.empty
    figure = _rows([0.72, 0.28] if replicas else [1.0], height=620 if replicas else 460)
    ordered = requests.sort_values(["sent_s", "end_s"], kind="stable").reset_index(drop=True)
    step = -(-len(ordered) // _MOST_BARS) or 1
    shown = ordered.iloc[::step]
    _request_bars(figure, shown)
    if replicas:
        assert telemetry is not None
        _replica_areas(figure, telemetry, deployment)
    some = f" (1 in {step} of {len(ordered):,})" if step > 1 else ""
    figure.update_traces(width=step * (0.85 if len(shown) < 200 else 1), selector={"type": "bar"})
    figure.update_layout(barmode="overlay")
    figure.update_yaxes(title_text="request, by time sent", autorange="reversed", row=1, col=1)
    figure.update_xaxes(title_text="time since the start of the run (s)", row=1 + replicas, col=1)
    return _titled(figure, f"Requests{some}", requests, health)


def latency_distributions(
    requests: pd.DataFrame, *, health: ClientHealth | None = None
) -> go.Figure:
    """The share of values at or below each latency, for TTFT and ITL, with p50 and p99 marked.

    Completed requests only. The axis is logarithmic where the tail is long.
    """
    from plotly.subplots import make_subplots

    done = requests[requests.status == "ok"]
    ttft = ((done.first_token_s - done.sent_s) * 1e3).dropna().to_numpy(float)
    times = [np.diff(np.asarray(t, float)) for t in done.token_times_s]
    itl = np.concatenate([np.empty(0), *times]) * 1e3
    figure = _styled(make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.05), 380)
    for column, (name, values, colour) in enumerate([("TTFT", ttft, BLUE), ("ITL", itl, GREEN)], 1):
        _ecdf(figure, column, name, values, colour)
    figure.update_yaxes(title_text="share at or below", tickformat=".0%", range=[0, 1.02], col=1)
    return _titled(figure, "Latency distributions", requests, health)


def throughput_over_time(
    requests: pd.DataFrame, *, bin_s: float | None = None, health: ClientHealth | None = None
) -> go.Figure:
    """Output tokens a second, and requests in progress below, on one time axis.

    `bin_s` is the width of a bin; by default a round number that gives at most 100. A chunk that
    brought several tokens counts as so many, by the server's own count.
    """
    import plotly.graph_objects as go

    figure = _rows([0.55, 0.45], height=520)
    at, tokens = _token_arrivals(requests)
    if len(at):
        width = bin_s or _round_up((at.max() - at.min()) / _BINS)
        edges = np.floor(at.min() / width) * width + width * np.arange(
            int((at.max() - np.floor(at.min() / width) * width) / width) + 2
        )
        rate = np.histogram(at, edges, weights=tokens)[0] / width
        figure.add_trace(
            go.Bar(
                x=(edges[:-1] + width / 2).round(6),
                y=rate.round(3),
                name=f"output tokens/s, over {width:g} s",
                marker={"color": BLUE, "line": {"width": 0}},
                hovertemplate="%{y:,.0f} tokens/s at %{x:.1f} s<extra></extra>",
            ),
            row=1,
            col=1,
        )
    _in_progress(figure, requests)
    figure.update_layout(bargap=0)
    figure.update_yaxes(title_text="output tokens/s", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title_text="requests in progress", rangemode="tozero", row=2, col=1)
    figure.update_xaxes(title_text="time since the start of the run (s)", row=2, col=1)
    return _titled(figure, "Throughput", requests, health)


def _request_bars(figure: go.Figure, shown: pd.DataFrame) -> None:
    import plotly.graph_objects as go

    ok = shown.status == "ok"
    first = shown.first_token_s.fillna(shown.end_s)
    phases = [
        ("waiting for the first token", ok, shown.sent_s, first, ORANGE, ""),
        ("streaming", ok & shown.first_token_s.notna(), first, shown.end_s, BLUE, ""),
        ("failed, shed or cancelled", ~ok, shown.sent_s, shown.end_s, VERMILLION, "/"),
    ]
    for name, mask, start, end, colour, pattern in phases:
        if mask.any():
            bars = go.Bar(
                orientation="h",
                y=shown.index[mask],
                base=start[mask].round(6),
                x=(end - start)[mask].round(6),
                name=name,
                marker={"color": colour, "line": {"width": 0}, "pattern": {"shape": pattern}},
                customdata=_hover_data(shown[mask]),
                hovertemplate=_HOVER,
            )
            figure.add_trace(bars, row=1, col=1)
    if (~ok).any():
        cross = {"symbol": "x", "color": VERMILLION, "size": 7 if len(shown) < 200 else 4}
        ends = go.Scatter(
            x=shown.end_s[~ok].round(6),
            y=shown.index[~ok],
            mode="markers",
            marker=cross,
            showlegend=False,
            hoverinfo="skip",
        )
        figure.add_trace(ends, row=1, col=1)


def _hover_data(rows: pd.DataFrame) -> list[list[str]]:
    def number(value: Any, form: str = "{:,.0f}") -> str:
        return "-" if value is None or value != value else form.format(value)

    def text(*values: Any) -> str:
        return html.escape(" ".join(v for v in values if isinstance(v, str)), quote=False)

    return [
        [
            text(row["request_id"])[:12],
            row["status"],
            number(row["sent_s"], "{:.3f}"),
            number((row["first_token_s"] - row["sent_s"]) * 1e3),
            number((row["end_s"] - row["sent_s"]) * 1e3),
            number(row["output_tokens"]),
            text(row["model"], row["tenant"], row["error"]),
        ]
        for row in rows.to_dict("records")
    ]


def _replica_areas(figure: go.Figure, telemetry: pd.DataFrame, deployment: str | None) -> None:
    import plotly.graph_objects as go

    rows = telemetry if deployment is None else telemetry[telemetry.deployment == deployment]
    counts = rows.groupby("time_s")[["running", "starting", "target"]].sum(min_count=1)
    areas = [("running", GREEN, ""), ("starting", PURPLE, "/")]
    for name, colour, pattern in areas:
        area = go.Scatter(
            x=counts.index,
            y=counts[name],
            name=f"replicas {name}",
            stackgroup="replicas",
            line={"shape": "hv", "width": 0.5, "color": colour},
            fillcolor=colour,
            fillpattern={"shape": pattern, "fgcolor": colour, "fillmode": "replace"}
            if pattern
            else None,
            hovertemplate=f"%{{y}} {name} at %{{x:.1f}} s<extra></extra>",
        )
        figure.add_trace(area, row=2, col=1)
    target = go.Scatter(
        x=counts.index,
        y=counts["target"],
        name="replicas wanted (target)",
        mode="lines",
        line={"shape": "hv", "width": 2.5, "color": SKY},
        hovertemplate="target %{y} at %{x:.1f} s<extra></extra>",
    )
    figure.add_trace(target, row=2, col=1)
    figure.update_yaxes(title_text="replicas", rangemode="tozero", dtick=1, row=2, col=1)


def _ecdf(
    figure: go.Figure, column: int, name: str, values: NDArray[np.float64], colour: str
) -> None:
    import plotly.graph_objects as go

    figure.update_xaxes(title_text=f"{name} (ms)", row=1, col=column)
    if not len(values):
        return
    shares = np.linspace(0, 1, min(_MOST_POINTS, len(values)))
    points = np.quantile(values, shares)
    long_tail = points[-1] > 30 * max(float(np.median(values)), 0.1)
    if long_tail:
        points = np.maximum(points, 0.1)
        figure.update_xaxes(type="log", row=1, col=column)
    else:
        figure.update_xaxes(rangemode="tozero", row=1, col=column)
    line = go.Scatter(
        x=points.round(3),
        y=shares.round(4),
        name=f"{name} of {len(values):,}",
        mode="lines",
        line={"color": colour, "width": 2},
        hovertemplate=f"%{{y:.1%}} of {name} at most %{{x:.1f}} ms<extra></extra>",
    )
    figure.add_trace(line, row=1, col=column)
    marks = np.percentile(values, [50, 99])
    marked = go.Scatter(
        x=marks.round(3),
        y=[0.5, 0.99],
        mode="markers+text",
        text=[f"p{p} {mark:,.1f} ms" for p, mark in zip((50, 99), marks, strict=True)],
        textposition=["middle right", "bottom left"],
        marker={"color": colour, "size": 9, "symbol": "diamond"},
        showlegend=False,
        hoverinfo="skip",
    )
    figure.add_trace(marked, row=1, col=column)


def _token_arrivals(requests: pd.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    times = [np.asarray(t, float) for t in requests.token_times_s]
    at = np.concatenate([np.empty(0), *times])
    lengths = np.array([len(t) for t in times], int)
    counted = requests.output_tokens.to_numpy(float)
    known = np.where(np.isnan(counted), lengths, counted)
    return at, np.repeat(known / np.maximum(lengths, 1), lengths)


def _in_progress(figure: go.Figure, requests: pd.DataFrame) -> None:
    import plotly.graph_objects as go

    sent, end = requests.sent_s.dropna().to_numpy(), requests.end_s.dropna().to_numpy()
    at = np.concatenate([sent, end])
    order = np.argsort(at, kind="stable")
    level = np.cumsum(np.concatenate([np.ones(len(sent)), -np.ones(len(end))])[order])
    keep = np.unique(np.linspace(0, len(at) - 1, min(len(at), 4 * _MOST_POINTS)).astype(int))
    steps = go.Scatter(
        x=at[order][keep].round(6),
        y=level[keep],
        name="requests in progress",
        mode="lines",
        line={"shape": "hv", "color": ORANGE, "width": 2},
        hovertemplate="%{y} in progress at %{x:.1f} s<extra></extra>",
    )
    figure.add_trace(steps, row=2, col=1)
    failed = requests[requests.status != "ok"].dropna(subset=["end_s"])
    if len(failed):
        marks = go.Scatter(
            x=failed.end_s.iloc[:: -(-len(failed) // _MOST_POINTS)].round(6),
            y=np.zeros(min(len(failed), _MOST_POINTS)),
            name="failed, shed or cancelled",
            mode="markers",
            marker={"symbol": "x", "color": VERMILLION, "size": 8},
            hovertemplate="failed at %{x:.1f} s<extra></extra>",
        )
        figure.add_trace(marks, row=2, col=1)


def _round_up(width: float) -> float:
    """The next of 1, 2, 5 times a power of ten, and at least a tenth of a second."""
    if width <= 0.1:
        return 0.1
    power = 10.0 ** np.floor(np.log10(width))
    return float(next(power * m for m in (1, 2, 5, 10) if power * m >= width * 0.999))


def _rows(heights: list[float], height: int) -> go.Figure:
    from plotly.subplots import make_subplots

    rows = len(heights)
    figure = make_subplots(
        rows=rows, cols=1, shared_xaxes=True, row_heights=heights, vertical_spacing=0.06
    )
    return _styled(figure, height)


def _styled(figure: go.Figure, height: int) -> go.Figure:
    axis = {"gridcolor": _GRID, "zerolinecolor": _GRID, "linecolor": GREY, "automargin": True}
    figure.update_layout(
        template="none",
        height=height,
        autosize=True,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": GREY, "size": 13},
        margin={"l": 60, "r": 20, "t": 100, "b": 50},
        legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": BLUE},
        hovermode="closest",
    )
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return figure


def _titled(
    figure: go.Figure, title: str, requests: pd.DataFrame, health: ClientHealth | None
) -> go.Figure:
    verdict: Mapping[str, Any] = requests.attrs.get("client_health") or {}
    if health is not None:
        verdict = health.model_dump()
    text: dict[str, Any] = {"text": title, "x": 0, "xref": "paper", "xanchor": "left"}
    if verdict.get("client_limited"):
        reasons = html.escape("; ".join(map(str, verdict.get("reasons", ()))), quote=False)
        text["text"] = f"{title} - CLIENT LIMITED"
        text["subtitle"] = {"text": reasons, "font": {"color": VERMILLION}}
        text["font"] = {"color": VERMILLION}
        figure.update_layout(margin_t=140)  # the reasons stand above the legend's two rows
    figure.update_layout(title=text | {"yref": "container", "y": 0.98, "yanchor": "top"})
    return figure


class Rendered:
    """A figure as notebooks save it: for JupyterLab as data, for everything else as HTML.

    nbconvert and viewers without plotly take the HTML, which needs no network. plotly.js (5 MB)
    stands in the HTML of one cell, the first that rendered; the others use it from there.
    """

    _carrier: tuple[str, int] | None = None  # the cell, and at which execution it rendered

    def __init__(self, figure: go.Figure) -> None:
        self.figure = figure

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        import json

        data = json.loads(self.figure.to_json())
        bundle = {"application/vnd.plotly.v1+json": {**data, "config": _CONFIG}}
        return {**bundle, "text/html": self._html(), "text/plain": "a figure"}

    def _html(self) -> str:
        here, carrier = _cell(), Rendered._carrier
        # A cell that carried it and is run again has lost its old output, and the script in it.
        carries = carrier is None or (here[0] == carrier[0] and here[1] != carrier[1])
        if carries:
            Rendered._carrier = here
        return to_div(self.figure, with_script=carries)


_CONFIG = {"responsive": True, "displaylogo": False}


def to_div(figure: go.Figure, *, with_script: bool) -> str:
    """`figure` as HTML that needs no network; `with_script` puts plotly.js in it."""
    text: str = figure.to_html(full_html=False, include_plotlyjs=with_script, config=_CONFIG)
    missing = "This figure is drawn by the script of the notebook's first figure: run that cell."
    check = (
        "<script>window.Plotly || document.currentScript.insertAdjacentHTML("
        f"'afterend', '<p>{missing.replace(chr(39), '&#39;')}</p>')</script>"
    )
    return text if with_script else check + text


def _cell() -> tuple[str, int]:
    """The running cell and its execution count. papermill does not say which cell it runs."""
    try:
        from IPython import get_ipython

        shell = get_ipython()
        count = int(shell.execution_count)
        return shell.parent_header.get("metadata", {}).get("cellId") or f"#{count}", count
    except (ImportError, AttributeError):
        return "#0", 0


def render(figure: go.Figure) -> Rendered:
    """`figure` as the last line of a cell, or for `display`: it lasts in a saved notebook."""
    return Rendered(figure)
