"""The dashboard's widgets: one figure, readings, and controls. It measures nothing."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.clock import running_loop
from workbench.dashboard.widgets import answer_at_once
from workbench.figures.cluster import (
    REPLICAS,
    ROWS,
    cluster_timeline,
    replica_tick,
    timeline_traces,
)
from workbench.figures.style import VERMILLION

if TYPE_CHECKING:
    from workbench.figures.cluster_frames import Frames

HEIGHT = 720
GAPS = (
    ("even", None),
    ("Poisson (1)", 1.0),
    ("bursty (0.5)", 0.5),
    ("very bursty (0.2)", 0.2),
)


@dataclass(frozen=True)
class Settings:
    """What the controls show at first, and how far they go."""

    rate: float
    max_rate: float
    burstiness: float | None
    output_tokens: int
    max_output_tokens: int
    target_ongoing_requests: float | None = None
    max_replicas: int | None = None


@dataclass(frozen=True)
class Actions:
    """What the controls do. Each may raise; the view says what went wrong."""

    set_rate: Callable[[float], Any]
    set_burstiness: Callable[[float | None], Any]
    set_output_tokens: Callable[[int], Any]
    start: Callable[[], Any]
    pause: Callable[[], Any]
    stop: Callable[[], Any]
    rescale: Callable[[float, int], Any]


class View:
    """Widgets that live in the output of the cell that displays `box`."""

    def __init__(self, settings: Settings, actions: Actions, empty: Frames) -> None:
        import ipywidgets as widgets
        import plotly.graph_objects as go

        self._actions, self._loop = actions, running_loop()
        self.figure = go.FigureWidget(cluster_timeline(empty, title="", height=HEIGHT))
        self.figure.update_layout(margin_t=30, uirevision="live")
        self.readings, self.status = widgets.HTML(), widgets.HTML()
        load, scaling = self._load_controls(settings), self._scaling_controls(settings)
        wrap = widgets.Layout(flex_flow="row wrap", align_items="center")
        rows = [widgets.HBox(load, layout=wrap), widgets.HBox(scaling, layout=wrap)]
        self.box = widgets.VBox([*rows, self.readings, self.status, self.figure])
        self.box.add_class("workbench-dashboard")
        for control in self._controls():
            answer_at_once(control)
        self.set_state("waiting")

    def _load_controls(self, settings: Settings) -> list[Any]:
        import ipywidgets as widgets

        wide = {"style": {"description_width": "initial"}, "continuous_update": False}
        size = widgets.Layout(width="300px")
        self.rate = widgets.FloatSlider(
            value=min(settings.rate, settings.max_rate),
            min=0,
            max=settings.max_rate,
            step=max(0.1, round(settings.max_rate / 100, 1)),
            description="requests/s",
            readout_format=".1f",
            tooltip="Requests a second; moving it takes the place of the plan",
            layout=size,
            **wide,
        )
        known = dict(GAPS)
        gaps = (
            GAPS
            if settings.burstiness in known.values()
            else (*GAPS, (f"{settings.burstiness:g}", settings.burstiness))
        )
        self.burstiness = widgets.Dropdown(
            options=gaps,
            value=settings.burstiness,
            description="gaps",
            tooltip="How requests are spaced: the shape of the gamma law",
            layout=widgets.Layout(width="210px"),
            style={"description_width": "initial"},
        )
        self.output_tokens = widgets.IntSlider(
            value=settings.output_tokens,
            min=1,
            max=settings.max_output_tokens,
            description="output tokens",
            tooltip="Tokens asked for in each further request",
            layout=size,
            **wide,
        )
        self._acting(self.rate, "set_rate")
        self._acting(self.burstiness, "set_burstiness")
        self._acting(self.output_tokens, "set_output_tokens")
        return [self.rate, self.burstiness, self.output_tokens]

    def _scaling_controls(self, settings: Settings) -> list[Any]:
        import ipywidgets as widgets

        self.buttons = {
            name: widgets.Button(description=text, tooltip=tip, icon=icon, button_style=style)
            for name, text, tip, icon, style in (
                ("start", "Start", "Start, or go on after a pause", "play", "success"),
                ("pause", "Pause", "Send nothing more for now", "pause", ""),
                ("stop", "Stop", "End the load; what was measured is kept", "stop", "danger"),
            )
        }
        for name, button in self.buttons.items():
            button.layout.width = "90px"
            button.on_click(lambda _, name=name: self._do(name))
        if settings.max_replicas is None:
            return list(self.buttons.values())
        small = {"style": {"description_width": "initial"}}
        self.target = widgets.BoundedFloatText(
            value=settings.target_ongoing_requests,
            min=0.1,
            max=4096,
            step=0.5,
            description="target_ongoing_requests",
            layout=widgets.Layout(width="235px"),
            **small,
        )
        self.most = widgets.BoundedIntText(
            value=settings.max_replicas,
            min=1,
            max=1024,
            description="max_replicas",
            layout=widgets.Layout(width="150px"),
            **small,
        )
        apply = widgets.Button(description="Apply", icon="check", layout={"width": "90px"})
        apply.tooltip = "Change the scaling of the running service; its replicas stay"
        apply.on_click(lambda _: self._do("rescale", self.target.value, self.most.value))
        self.buttons["apply"] = apply
        return [
            *(self.buttons[name] for name in ("start", "pause", "stop")),
            self.target,
            self.most,
            apply,
        ]

    def _acting(self, control: Any, action: str) -> None:
        def changed(change: dict[str, Any]) -> None:
            if not self._following:
                self._do(action, change["new"])

        control.observe(changed, names="value")

    _following = False

    def follow_rate(self, rate: float) -> None:
        """Move the slider with the plan, which is no wish of a person's."""
        if abs(rate - self.rate.value) < self.rate.step:
            return
        self._following = True
        try:
            self.rate.value = min(rate, self.rate.max)
        finally:
            self._following = False

    def _do(self, action: str, *values: Any) -> None:
        """JupyterLab may deliver a control's message in another thread; the load has one loop."""
        if self._loop is not None and running_loop() is not self._loop:
            self._loop.call_soon_threadsafe(self._do_here, action, *values)
        else:
            self._do_here(action, *values)

    def _do_here(self, action: str, *values: Any) -> None:
        try:
            getattr(self._actions, action)(*values)
        except Exception as problem:
            # A callback's exception would end in a log that nobody reads.
            self.say(f"{type(problem).__name__}: {problem}", bad=True)

    def _controls(self) -> list[Any]:
        scaling = [self.target, self.most] if "apply" in self.buttons else []
        load = [self.rate, self.burstiness, self.output_tokens]
        return [*load, *self.buttons.values(), *scaling]

    def set_state(self, state: str) -> None:
        """Which buttons make sense: `waiting`, `starting`, `running`, `paused` or `ended`."""
        going = state in ("starting", "running", "paused")
        self.buttons["start"].description = "Resume" if state == "paused" else "Start"
        self.buttons["start"].disabled = state not in ("waiting", "paused")
        self.buttons["pause"].disabled = state != "running"
        self.buttons["stop"].disabled = not going
        for control in (self.rate, self.burstiness, self.output_tokens):
            control.disabled = state == "ended"

    def say(self, line: str, *, bad: bool = False) -> None:
        """One line under the controls."""
        style = f' style="color:{VERMILLION};font-weight:600"' if bad else ""
        self.status.value = f'<div role="status"{style}>{html.escape(line)}</div>'

    def read(self, readings: dict[str, str]) -> None:
        """Figures in words, above the chart."""
        cells = "".join(
            f"<span>{html.escape(name)} <b>{html.escape(value)}</b></span>"
            for name, value in readings.items()
        )
        row = "display:flex;flex-wrap:wrap;gap:0 1.6em;font-variant-numeric:tabular-nums"
        self.readings.value = f'<div style="{row}">{cells}</div>'

    def draw(self, frames: Frames, start_s: float, end_s: float) -> None:
        """Show these frames, from `start_s` to `end_s`."""
        figure = self.figure
        with figure.batch_update():
            for shown, placed in zip(figure.data, timeline_traces(frames), strict=True):
                _update(shown, placed.trace)
            figure.update_layout(self._ranges([start_s, end_s]) | self._ticks(replica_tick(frames)))

    def _ranges(self, seconds: list[float]) -> dict[str, Any]:
        rows = range(1, len(ROWS) + 1)
        return {f"xaxis{row if row > 1 else ''}": {"range": seconds} for row in rows}

    def _ticks(self, distance: int) -> dict[str, Any]:
        axis = self.figure.get_subplot(REPLICAS, 1, secondary_y=False).yaxis.plotly_name
        return {axis: {"dtick": distance}}


def _update(shown: Any, new: dict[str, Any]) -> None:
    x, y = (_floats(new.get(name)) for name in ("x", "y"))
    if _same(shown.x, x) and _same(shown.y, y):
        return
    if new.get("mode") == "markers":
        marker = {name: new["marker"][name] for name in ("symbol", "color")}
        shown.update(customdata=new.get("customdata"), marker=marker)
    shown.x, shown.y = x, y


def _same(shown: Any, new: Any) -> bool:
    return np.array_equal(_floats(shown), new, equal_nan=True)


def _floats(values: Any) -> Any:
    return np.asarray(() if values is None else values, float)
