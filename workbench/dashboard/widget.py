"""The dashboard's widget: what the page shows, in synced state, and what it sends back.

The page is plain JavaScript and CSS (`frontend/`). JupyterLab reads the state of all widgets again
after a reload, so that everything that must survive it is a trait here. New points of the lines are
sent as messages; the state has all of them, and is only read when a page needs it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
import traitlets

from workbench.dashboard.history import History
from workbench.plotly_script import FILE

FRONTEND = Path(__file__).parent / "frontend"
SCRIPTS = ("dom.js", "store.js", "chart.js", "overview.js", "controls.js", "main.js")
"""The scripts, which form one module in this order: a widget's module cannot import its own."""


def module() -> str:
    """Return the JavaScript module of the page."""
    return "\n".join((FRONTEND / name).read_text(encoding="utf-8") for name in SCRIPTS)


class DashboardWidget(anywidget.AnyWidget):
    """The state of the page.

    Attributes:
        plotly: plotly.js, compressed.
        figure: The lines without their points, the layout, and the seconds that are shown.
        history: The points of the lines.
        scene: The other traces, the axes and the lines that depend on the data.
        header: The state of the load, the progress of its plan and the last message.
        tiles: The numbers at the top (`workbench.dashboard.tiles`).
        load: The controls of the load.
        scaling: The controls of the scaling; empty if there is nothing to scale.
        events: The event log, the latest first.
    """

    _esm = module()
    _css = FRONTEND / "dashboard.css"
    plotly = traitlets.Bytes().tag(sync=True)
    figure = traitlets.Dict().tag(sync=True)
    history = traitlets.Instance(History).tag(sync=True, to_json=lambda value, _: value.state())
    scene = traitlets.Dict().tag(sync=True)
    header = traitlets.Dict().tag(sync=True)
    tiles: traitlets.List[Any] = traitlets.List().tag(sync=True)
    load = traitlets.Dict().tag(sync=True)
    scaling = traitlets.Dict().tag(sync=True)
    events: traitlets.List[Any] = traitlets.List().tag(sync=True)

    def __init__(self, history: History, **state: Any) -> None:
        super().__init__(plotly=FILE.read_bytes(), history=history, **state)
