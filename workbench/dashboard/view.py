"""The view of a dashboard: it fills the widget, and hands the page's actions on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.clock import running_loop
from workbench.dashboard.controls import (
    STATES,
    disabled_because,
    load_controls,
    progress_fields,
    scaling_controls,
)
from workbench.dashboard.history import History
from workbench.dashboard.tiles import Tiles
from workbench.dashboard.widget import DashboardWidget
from workbench.dashboard.widgets import ack_widget_messages
from workbench.figures.cluster import blank_timeline, line_traces, mark_traces, scales, shapes
from workbench.figures.panels import LIVE_PANELS

if TYPE_CHECKING:
    from collections.abc import Callable

    import plotly.graph_objects as go

    from workbench.dashboard.controller import Controller, Settings
    from workbench.dashboard.state import LiveState
    from workbench.figures.cluster_frames import Frames

LIVE_HEIGHT, _TOP_PX = 640, 26
_SET = {"set_rate": "rate", "set_burstiness": "burstiness", "set_output_tokens": "output_tokens"}
"""The actions that set a value of the load."""
_ACTIONS = {"start", "pause", "stop", "rescale", *_SET}


class View:
    """A widget and its content. The widget can be displayed any number of times."""

    def __init__(
        self,
        settings: Settings,
        controller: Controller,
        state: LiveState,
        *,
        report: Callable[[str], None],
        window_s: int,
    ) -> None:
        """`report` shows an error of a control; the figure shows `window_s` seconds at first."""
        self._controller, self._report, self._loop = controller, report, running_loop()
        self._tiles, self._data = Tiles(), state
        empty = state.frames([])
        lines = line_traces(empty, LIVE_PANELS)
        header = {"state": "waiting", "label": STATES["waiting"], "message": "", "error": False}
        self.history = History(len(lines))
        self.widget = DashboardWidget(
            self.history,
            figure={
                "lines": [_plain(placed.trace) for placed in lines],
                "layout": self._blank().to_plotly_json()["layout"],
                "rows": [placed.row for placed in [*lines, *mark_traces(empty, LIVE_PANELS)]],
                "window_s": window_s,
            },
            scene=_scene(empty, 0.0),
            header=header | progress_fields(controller.running, controller.plan_s),
            tiles=self._tiles.update(None, empty, state.tally),
            load=load_controls(settings),
            scaling=scaling_controls(controller),
        )
        self.widget.on_msg(self._received)
        ack_widget_messages(self.widget)
        self.set_state("waiting")

    def _blank(self) -> go.Figure:
        return blank_timeline(LIVE_HEIGHT, LIVE_PANELS, top=_TOP_PX)

    def _received(self, _: Any, content: dict[str, Any], __: Any) -> None:
        """Act in the load's event loop: JupyterLab may deliver a message in another thread."""
        if self._loop is not None and running_loop() is not self._loop:
            self._loop.call_soon_threadsafe(self._act, content)
        else:
            self._act(content)

    def _act(self, content: dict[str, Any]) -> None:
        action, values = str(content.get("action")), content.get("values", [])
        if action == "resync":
            self.widget.send(self.history.message())
            return
        try:
            if action not in _ACTIONS:
                raise ValueError(f"unknown action {action!r}")
            getattr(self._controller, action)(*values)
        except Exception as error:
            # The exception of a callback would only be written to a log.
            self._report(f"{type(error).__name__}: {error}")
            self._put_back()
            return
        if action in _SET:
            self._update("load", **{_SET[action]: values[0]})
        if action == "rescale" and self._controller.rescaling is not None:
            self._controller.rescaling.add_done_callback(lambda _: self._refresh_scaling())
        self._refresh_scaling()

    def _put_back(self) -> None:
        """Send the values in force again, because the page shows the ones that were rejected."""
        self.widget.send({"type": "values"})

    def _refresh_scaling(self) -> None:
        self.widget.scaling = scaling_controls(self._controller)

    def _update(self, name: str, **fields: Any) -> None:
        setattr(self.widget, name, getattr(self.widget, name) | fields)

    def set_state(self, state: str) -> None:
        """Show a state of `STATES`, and enable the controls that it allows."""
        running = self._controller.running
        progress = progress_fields(running, self._controller.plan_s)
        self._update("header", state=state, label=STATES[state], **progress)
        manual = running is not None and running.manual_rate
        self._update("load", disabled=disabled_because(state), manual=manual)
        if running is not None and not manual and state == "running":
            self._update("load", rate=round(running.rate, 1))

    def show_message(self, text: str, *, error: bool = False) -> None:
        """Show one line below the header."""
        self._update("header", message=text, error=error)

    def draw(self, frames: Frames, now_s: float, *, final: bool = False) -> None:
        """Show `frames` and the numbers at `now_s`, in seconds since the start of the run."""
        lines = [line.points(frames) for panel in LIVE_PANELS for line in panel.traces]
        message = self.history.extend(lines, final=final)
        with self.widget.hold_sync():
            self.widget.scene = _scene(frames, now_s)
            self.widget.tiles = self._tiles.update(
                self._controller.running, frames, self._data.tally
            )
            self.widget.events = self._data.log.events()
            self._refresh_scaling()
        if message is not None:
            self.widget.send(message)

    def figure(self) -> go.Figure:
        """Return the live figure as a plain figure."""
        figure, scene = self._blank(), self.widget.scene
        styles = self.widget.figure["lines"]
        lines = zip(styles, self.history.lines, strict=True)
        traces = [*(style | line.fields() for style, line in lines), *scene["marks"]]
        figure.add_traces(traces)
        rows = zip(self.widget.figure["rows"], traces, strict=True)
        filled = {row for row, trace in rows if len(trace.get("x", ()))}
        for row, note in enumerate(figure.layout.annotations[len(LIVE_PANELS) :], 1):
            note.visible = row not in filled
        figure.update_layout(scene["scales"] | {"shapes": scene["shapes"]})
        return figure


def _scene(frames: Frames, now_s: float) -> dict[str, Any]:
    return {
        "now_s": round(now_s, 1),
        "marks": [placed.trace for placed in mark_traces(frames, LIVE_PANELS)],
        "scales": scales(frames, LIVE_PANELS),
        "shapes": shapes(frames, LIVE_PANELS),
    }


def _plain(trace: dict[str, Any]) -> dict[str, Any]:
    """Return a trace without its points."""
    return {name: value for name, value in trace.items() if name not in ("x", "y", "text")}
