"""The last state of a dashboard as HTML, for a saved notebook, which has no widgets."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from workbench.display import StaticFigure
from workbench.figures.style import GREEN, ORANGE, VERMILLION
from workbench.quantities import significant

if TYPE_CHECKING:
    from workbench.dashboard.view import View

MAX_EVENTS = 30
_COLOURS = {"good": GREEN, "near": ORANGE, "bad": VERMILLION, "none": "inherit"}


def picture(view: View) -> str:
    """Return the numbers, the message, the figure and the events; it needs no kernel."""
    header, tiles = view.widget.header, "".join(map(_tile, view.widget.tiles))
    row = "display:flex;flex-wrap:wrap;gap:8px 24px;font-variant-numeric:tabular-nums"
    status = f"{header['label']}. {header['message']}"
    colour = _COLOURS["bad"] if header["error"] else "inherit"
    parts = [
        f'<div style="{row}">{tiles}</div>',
        f'<p style="color:{colour}">{html.escape(status)}</p>',
        StaticFigure(view.figure()).html(),
        _events(view.widget.events),
    ]
    return f"<div>{''.join(parts)}</div>"


def _tile(tile: dict[str, Any]) -> str:
    label, value, detail = (html.escape(tile[name]) for name in ("label", "value", "detail"))
    big = f"font-size:1.4em;font-weight:600;color:{_COLOURS[tile['level']]}"
    return f'<div>{label}<br><span style="{big}">{value}</span><br><small>{detail}</small></div>'


def _events(events: list[dict[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td>{significant(event['time_s'])} s</td><td>{html.escape(event['title'])}</td>"
        f'<td style="text-align:left">{html.escape(event["detail"])}</td></tr>'
        for event in events[:MAX_EVENTS]
    )
    return f"<details><summary>Events</summary><table>{rows}</table></details>" if rows else ""
