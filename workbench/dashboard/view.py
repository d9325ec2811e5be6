"""The dashboard's widgets: one figure, the latest readings, and the controls. Measures nothing."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.clock import running_loop
from workbench.dashboard.controls import LoadControls, ScalingControls, make_buttons
from workbench.dashboard.widgets import ack_widget_messages
from workbench.figures.cluster import HEIGHT, cluster_timeline, tick_layout, timeline_traces
from workbench.figures.style import VERMILLION

if TYPE_CHECKING:
    from workbench.dashboard.controller import Controller, Settings
    from workbench.figures.cluster_frames import Frames

LIVE_HEIGHT = round(HEIGHT * 720 / 980)
"""Pixels of the live figure, which shares the screen with the controls."""


class View:
    """Widgets in the output of the cell that displays `box`."""

    def __init__(self, settings: Settings, controller: Controller, empty: Frames) -> None:
        """`empty` are the frames before the start, for the first drawing."""
        import ipywidgets as widgets
        import plotly.graph_objects as go

        self._controller, self._loop = controller, running_loop()
        self._follows_plan = False
        self.figure = go.FigureWidget(cluster_timeline(empty, title="", height=LIVE_HEIGHT))
        self.figure.update_layout(margin_t=30, uirevision="live")
        self._time_axes = [axis.plotly_name for axis in self.figure.select_xaxes()]
        self.readings, self.status = widgets.HTML(), widgets.HTML()
        self.load, self.scaling = LoadControls(settings), ScalingControls(settings)
        self.buttons = make_buttons(scaling=self.scaling.shown)
        self._connect()
        self.box = widgets.VBox([*self._rows(), self.readings, self.status, self.figure])
        self.box.add_class("workbench-dashboard")
        for control in (*self.load.all(), *self.buttons.values(), *self.scaling.all()):
            ack_widget_messages(control)
        self.set_state("waiting")

    def _rows(self) -> list[Any]:
        import ipywidgets as widgets

        wrap = widgets.Layout(flex_flow="row wrap", align_items="center")
        run = [self.buttons[name] for name in ("start", "pause", "stop")]
        scaling = [*self.scaling.all(), *(b for b in self.buttons.values() if b not in run)]
        return [
            widgets.HBox(self.load.all(), layout=wrap),
            widgets.HBox([*run, *scaling], layout=wrap),
        ]

    def _connect(self) -> None:
        self._observe(self.load.rate, "set_rate")
        self._observe(self.load.burstiness, "set_burstiness")
        self._observe(self.load.output_tokens, "set_output_tokens")
        for name, button in self.buttons.items():
            button.on_click(lambda _, name=name: self._click(name))

    def _observe(self, control: Any, action: str) -> None:
        def changed(change: dict[str, Any]) -> None:
            if not self._follows_plan:
                self._do(action, change["new"])

        control.observe(changed, names="value")

    def _click(self, button: str) -> None:
        if button == "apply":
            self._do("rescale", self.scaling.target.value, self.scaling.max_replicas.value)
        else:
            self._do(button)

    def _do(self, action: str, *values: Any) -> None:
        """Act in the load's event loop: JupyterLab may deliver a message in another thread."""
        if self._loop is not None and running_loop() is not self._loop:
            self._loop.call_soon_threadsafe(self._do_here, action, *values)
        else:
            self._do_here(action, *values)

    def _do_here(self, action: str, *values: Any) -> None:
        try:
            getattr(self._controller, action)(*values)
        except Exception as error:
            # The exception of a callback would only be written to a log.
            self.show_message(f"{type(error).__name__}: {error}", error=True)

    def follow_rate(self, rate: float) -> None:
        """Move the slider to the plan's rate in requests/s, without setting that rate."""
        slider = self.load.rate
        if abs(rate - slider.value) < slider.step:
            return
        self._follows_plan = True
        try:
            slider.value = min(rate, slider.max)
        finally:
            self._follows_plan = False

    def set_state(self, state: str) -> None:
        """Enable the controls for `waiting`, `starting`, `running`, `paused` or `ended`."""
        self.buttons["start"].description = "Resume" if state == "paused" else "Start"
        self.buttons["start"].disabled = state not in ("waiting", "paused")
        self.buttons["pause"].disabled = state != "running"
        self.buttons["stop"].disabled = state not in ("starting", "running", "paused")
        for control in self.load.all():
            control.disabled = state in ("waiting", "ended")

    def show_message(self, text: str, *, error: bool = False) -> None:
        """Show one line below the controls."""
        style = f' style="color:{VERMILLION};font-weight:600"' if error else ""
        self.status.value = f'<div role="status"{style}>{html.escape(text)}</div>'

    def show_readings(self, readings: dict[str, str]) -> None:
        """Show values by label above the figure."""
        cells = "".join(
            f"<span>{html.escape(label)} <b>{html.escape(value)}</b></span>"
            for label, value in readings.items()
        )
        row = "display:flex;flex-wrap:wrap;gap:0 1.6em;font-variant-numeric:tabular-nums"
        self.readings.value = f'<div style="{row}">{cells}</div>'

    def picture(self) -> str:
        """Return the present state without controls, as HTML that needs no kernel."""
        from workbench.display import StaticFigure

        texts: str = self.readings.value + self.status.value
        return texts + StaticFigure(_plain(self.figure)).html()

    def draw(self, frames: Frames, start_s: float, end_s: float) -> None:
        """Show `frames` from `start_s` to `end_s`, in seconds since the start of the run."""
        ranges = {axis: {"range": [start_s, end_s]} for axis in self._time_axes}
        with self.figure.batch_update():
            for shown, placed in zip(self.figure.data, timeline_traces(frames), strict=True):
                _update(shown, placed.trace)
            self.figure.update_layout(ranges | tick_layout(self.figure, frames))


def _plain(figure: Any) -> Any:
    """Return a plain figure with the data and layout of a FigureWidget."""
    import plotly.graph_objects as go

    return go.Figure(figure.to_dict())


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
