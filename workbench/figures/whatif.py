"""Figures of simulations: a day, many settings, and a prediction over its measurement.

What makes a simulation doubtful is below the title of its figure.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.analysis.pareto import efficient
from workbench.errors import SettingError
from workbench.figures.style import BLUE, GREEN, GREY, ORANGE, VERMILLION, stacked, styled, titled
from workbench.metrics.columns import Columns
from workbench.metrics.registry import get_latency
from workbench.quantities import SHARE_TICKS
from workbench.whatif.comparison import load_start_s, replicas_at

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from workbench.runs.run import Run
    from workbench.whatif.result import Simulation
    from workbench.whatif.state import Floats

BINS = 144
"""Intervals of a simulated day: ten minutes each."""

HOUR_S = 3600.0
_SHADES = (("Predicted", ORANGE, "dash"), ("Measured", BLUE, "solid"))


def simulated_day(simulation: Simulation, *, height: int = 560) -> go.Figure:
    """Draw requests per second, replicas and TTFT over the hours of a simulation.

    Args:
        simulation: The simulation.
        height: The height of the figure in pixels.
    """
    figure = stacked([0.25, 0.4, 0.35], height)
    for row, trace in day_traces(simulation):
        figure.add_trace(trace, row=row, col=1)
    figure.update_yaxes(title_text="Requests/s", rangemode="tozero", row=1)
    figure.update_yaxes(title_text="Replicas", rangemode="tozero", row=2)
    figure.update_yaxes(title_text="TTFT (ms)", type="log", row=3)
    figure.update_xaxes(title_text="Hours", row=3)
    return marked(figure, "Simulated load", simulation.marks)


def day_traces(simulation: Simulation) -> list[tuple[int, dict[str, Any]]]:
    """Return the row and the trace of each line of `simulated_day`, always in the same order."""
    columns = simulation.columns()
    edges = np.linspace(0, max(simulation.duration_s, 1e-9), BINS + 1)
    hours = (edges[:-1] + edges[1:]) / 2 / HOUR_S
    arrived, _ = np.histogram(columns.due_s, edges)
    changes, running, target = _replica_steps(simulation)
    ttft_ms = get_latency("ttft").formula(columns) * 1e3
    p50, p99 = _binned(columns.due_s, ttft_ms, edges)
    step = {"mode": "lines", "line_shape": "hv"}
    return [
        (1, _line(hours, arrived / np.diff(edges), "Requests/s", GREY)),
        (2, _line(changes / HOUR_S, running, "Replicas running", BLUE, **step)),
        (2, _line(changes / HOUR_S, target, "Target", ORANGE, dash="dash", **step)),
        (3, _line(hours, p50, "TTFT p50", GREEN)),
        (3, _line(hours, p99, "TTFT p99", VERMILLION)),
    ]


def _line(
    x: Floats, y: Floats, name: str, colour: str, dash: str = "solid", **options: Any
) -> dict[str, Any]:
    shape = {"shape": options.pop("line_shape")} if "line_shape" in options else {}
    return {
        "type": "scatter",
        "x": x,
        "y": y,
        "name": name,
        "mode": "lines",
        "line": {"color": colour, "dash": dash, "width": 1.5} | shape,
    } | options


def _replica_steps(simulation: Simulation) -> tuple[Floats, Floats, Floats]:
    """Return the times at which replicas or the target change, and both from then on."""
    frame, decisions = simulation.replicas_frame(), simulation.decisions()
    moments = [frame.ready_s, frame.stopping_s, [decision.time_s for decision in decisions]]
    times = np.unique(np.concatenate([[0.0], *moments, [simulation.duration_s]]).astype(float))
    times = times[np.isfinite(times)]
    scaling = simulation.spec.model.scaling
    first = scaling.initial_replicas
    targets = [scaling.min_replicas if first is None else first]
    targets += [decision.to_target for decision in decisions]
    decided = np.array([decision.time_s for decision in decisions])
    target = np.array(targets, float)[np.searchsorted(decided, times, side="right")]
    return times, replicas_at(simulation, times), target


def _binned(at_s: Floats, values: Floats, edges: Floats) -> tuple[Floats, Floats]:
    """Return the median and the 99th percentile of each interval, NaN where it is empty."""
    import pandas as pd

    number = np.clip(np.searchsorted(edges, at_s, side="right") - 1, 0, len(edges) - 2)
    groups = pd.Series(values).groupby(number)
    every = range(len(edges) - 1)
    return tuple(  # type: ignore[return-value]
        groups.quantile(share).reindex(every).to_numpy(float) for share in (0.5, 0.99)
    )


def settings_frontier(table: pd.DataFrame, settings: Sequence[str]) -> go.Figure:
    """Draw $ per day against SLO attainment, a point per setting of `wb.whatif.sweep`.

    A line joins the settings that no other surpasses in both. Doubtful ones are hollow.

    Args:
        table: What `sweep` returned with an SLO and prices.
        settings: The columns that the points show: the fields of the grid.

    Raises:
        SettingError: The table lacks a column.
    """
    import plotly.graph_objects as go

    missing = [name for name in ("cost_per_day", "slo_attainment", *settings) if name not in table]
    if missing:
        raise SettingError(
            f"table must have the columns {', '.join(missing)}; call sweep with slo and prices"
        )
    best = frontier_rows(table)
    figure = styled(go.Figure(), 480)
    parts = (("Surpassed", table.drop(best.index), GREY), ("Frontier", best, BLUE))
    for name, rows, colour in parts:
        doubtful = rows.marks != ""
        figure.add_scatter(
            x=rows.cost_per_day,
            y=rows.slo_attainment,
            mode="lines+markers" if name == "Frontier" else "markers",
            name=name,
            line={"color": colour, "width": 1, "shape": "hv"},
            marker={
                "color": colour,
                "size": 9,
                "symbol": ["circle-open" if doubt else "circle" for doubt in doubtful],
            },
            customdata=[_setting_text(row, settings) for _, row in rows.iterrows()],
            hovertemplate="%{customdata}<br>$%{x:,.2f} per day, %{y:.2%} within the SLO"
            "<extra></extra>",
        )
    figure.update_xaxes(title_text="$ per day", tickprefix="$")
    figure.update_yaxes(title_text="Requests within the SLO", tickformat=SHARE_TICKS)
    marks = dict.fromkeys(mark for text in table.marks for mark in text.split("; ") if mark)
    return marked(figure, "Cost and SLO attainment of each setting", marks)


def frontier_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return the settings that no other surpasses in cost and attainment, the cheapest first.

    Of several with the same cost and attainment, the first one.
    """
    cost, share = table.cost_per_day.to_numpy(float), table.slo_attainment.to_numpy(float)
    best = table[efficient(-cost, share)].drop_duplicates(["cost_per_day", "slo_attainment"])
    return best.sort_values("cost_per_day", kind="stable")


def _setting_text(row: pd.Series, settings: Sequence[str]) -> str:
    return html.escape(", ".join(f"{name} = {row[name]}" for name in settings), quote=False)


def prediction_overlay(simulation: Simulation, run: Run, deployment: str) -> go.Figure:
    """Draw the predicted and the measured TTFT, E2EL and replicas of one load.

    Args:
        simulation: The prediction.
        run: The run of the same load.
        deployment: The name of the deployment in the run.
    """
    from plotly.subplots import make_subplots

    figure = make_subplots(
        rows=2, cols=2, specs=[[{}, {}], [{"colspan": 2}, None]], vertical_spacing=0.18
    )
    styled(figure, 560)
    sources = (simulation.columns(), Columns.read(list(run.records())))
    for column, key in enumerate(("ttft", "e2el"), start=1):
        latency = get_latency(key)
        for (name, colour, dash), requests in zip(_SHADES, sources, strict=True):
            values = np.sort(latency.formula(requests)[requests.ok] * 1e3)
            shares = np.arange(1, len(values) + 1) / max(1, len(values))
            line = _line(values, shares, name, colour, dash)
            figure.add_trace(
                line | {"legendgroup": name, "showlegend": column == 1}, row=1, col=column
            )
        figure.update_xaxes(title_text=f"{key.upper()} (ms)", row=1, col=column)
    figure.update_yaxes(title_text="Share at or below", tickformat=SHARE_TICKS, row=1, col=1)
    times, measured = _measured_replicas(run, deployment)
    times = times - load_start_s(simulation, run)
    drawn = (times[:0], times[:0]) if not len(times) else (replicas_at(simulation, times), measured)
    for (name, colour, dash), counts in zip(_SHADES, drawn, strict=True):
        line = _line(times, counts, name, colour, dash, line_shape="hv")
        figure.add_trace(line | {"legendgroup": name, "showlegend": False}, row=2, col=1)
    figure.update_xaxes(title_text="Time since the start of the load (s)", row=2, col=1)
    figure.update_yaxes(title_text="Replicas running", rangemode="tozero", row=2, col=1)
    return marked(figure, "Prediction and measurement", simulation.marks)


def _measured_replicas(run: Run, deployment: str) -> tuple[Floats, Floats]:
    frame = run.samples_frame("deployment")
    rows = frame[(frame.deployment == deployment) & frame.running.notna()]
    return rows.time_s.to_numpy(float), rows.running.to_numpy(float)


def marked(figure: go.Figure, title: str, marks: Iterable[str]) -> go.Figure:
    """Give a figure its title, and below it what makes the simulation doubtful."""
    titled(figure, title)
    text = html.escape("; ".join(marks), quote=False)
    if text:
        subtitle = {"text": f"doubtful: {text}", "font": {"color": VERMILLION}}
        figure.update_layout(title_subtitle=subtitle, margin_t=140)
    return figure
