"""The two simulations as figures with a slider, a frame per step.

The frames are plotly's own and need no kernel, so they work in a saved notebook too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.figures.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, styled
from workbench.teaching.batching import IDLE, Table
from workbench.teaching.paging import FREE, Moment

if TYPE_CHECKING:
    import plotly.graph_objects as go

_COLOURS = (
    BLUE,
    ORANGE,
    GREEN,
    PURPLE,
    SKY,
    VERMILLION,
    "#882255",
    "#DDCC77",
    "#44AA99",
    "#332288",
)
_EMPTY = "rgba(128,128,128,0.15)"
_ROW = 32  # slots in a row of the figure


def paging_figure(contiguous: Sequence[Moment], paged: Sequence[Moment], block: int) -> go.Figure:
    """Draw memory in each step on both sides, with the block table of the paged side below.

    A pale cell is held but has no token in it. The side that ends first keeps its last step.

    Args:
        contiguous: The steps of the contiguous side.
        paged: The steps of the paged side, with memory of the same size.
        block: Slots per block of the paged side.
    """
    steps = max(len(contiguous), len(paged))
    rows = len(contiguous[0].owner) // _ROW or 1
    requests = 1 + max(max(m.tables, default=0) for m in (*contiguous, *paged))
    width = max(len(table) for m in paged for table in m.tables.values())
    figure = _three_panels(rows, requests)
    frames = []
    for step in range(steps):
        left, right = _at(contiguous, step), _at(paged, step)
        data = [_memory(left, requests), _memory(right, requests), _table(right, requests, width)]
        titles = [
            _memory_title("Contiguous", left, step >= len(contiguous)),
            _memory_title(f"Paged, blocks of {block}", right, step >= len(paged)),
            "Block table of the paged side: the blocks of each request in the order of its tokens",
        ]
        frames.append(_frame(figure, step, data, titles))
    figure.update_yaxes(visible=False, autorange="reversed", row=1, col=1)
    figure.update_yaxes(visible=False, autorange="reversed", row=2, col=1)
    figure.update_yaxes(autorange="reversed", tickmode="array", row=3, col=1)
    figure.update_yaxes(tickvals=list(range(requests)), row=3, col=1)
    figure.update_yaxes(ticktext=[_name(i) for i in range(requests)], row=3, col=1)
    figure.update_xaxes(visible=False)
    return _with_slider(figure, frames, "Step ")


def batching_figure(static: Table, continuous: Table) -> go.Figure:
    """Draw what each slot of the batch does in each step on both sides; idle slots are pale."""
    from plotly.subplots import make_subplots

    steps = max(static.steps, continuous.steps)
    figure = styled(
        make_subplots(rows=2, cols=1, subplot_titles=[" ", " "], shared_xaxes=True), 420
    )
    frames = []
    for step in range(1, steps + 1):
        tables = {"Static": static, "Continuous": continuous}
        data = [_slots(table, step, steps) for table in tables.values()]
        titles = [_batch_title(name, table, step) for name, table in tables.items()]
        frames.append(_frame(figure, step, data, titles))
    figure.update_yaxes(title_text="Slot of the batch", dtick=1, autorange="reversed")
    return _with_slider(figure, frames, "Step ", at=len(frames) - 1)


def _three_panels(rows: int, requests: int) -> go.Figure:
    from plotly.subplots import make_subplots

    blank = make_subplots(
        rows=3,
        cols=1,
        subplot_titles=[" ", " ", " "],
        row_heights=[rows, rows, 0.6 * requests],
        vertical_spacing=0.09,
    )
    return styled(blank, 160 + 44 * rows * 2 + 22 * requests)


def _at(moments: Sequence[Moment], step: int) -> Moment:
    return moments[min(step, len(moments) - 1)]


def _memory_title(name: str, moment: Moment, ended: bool) -> str:
    if ended:
        return f"<b>{name}</b>: all requests served"
    share = moment.used / len(moment.owner)
    return (
        f"<b>{name}</b>: {len(moment.tables)} running, {len(moment.waiting)} waiting; "
        f"{share:.0%} of the memory has tokens, {moment.waste:.0%} of the held slots are empty"
    )


def _memory(moment: Moment, requests: int) -> go.Heatmap:
    owner = np.asarray(moment.owner)
    written = np.asarray(moment.written)
    # 0 is free; a request has a number from 1 on, and its empty slots that plus `requests`.
    z = np.where(owner == FREE, 0, owner + 1 + np.where(written, 0, requests))
    text = [_name(number) if number != FREE else "" for number in moment.owner]
    return _heatmap(_folded(z), _folded(np.asarray(text)), requests)


def _folded(cells: Any) -> Any:
    width = _ROW if len(cells) >= _ROW else len(cells)
    return cells.reshape(-1, width)


def _table(moment: Moment, requests: int, width: int) -> go.Heatmap:
    z = np.zeros((requests, width), int)
    text = np.full((requests, width), "", dtype=object)
    for number, blocks in moment.tables.items():
        z[number, : len(blocks)] = number + 1
        text[number, : len(blocks)] = [str(block) for block in blocks]
    return _heatmap(z, text, requests)


def _slots(table: Table, step: int, steps: int) -> go.Heatmap:
    requests = 1 + max(request for row in table.cells for request in row)
    shown = np.full((steps, len(table.cells[0])), np.nan)
    cells = np.asarray(table.cells[:step], float)
    shown[: len(cells)] = np.where(cells == IDLE, 0, cells + 1)
    return _heatmap(shown.T, None, requests, x=list(range(1, steps + 1)))


def _batch_title(name: str, table: Table, step: int) -> str:
    done = min(step, table.steps)
    tokens = table.tokens_by(done)
    idle = 1 - tokens / (done * len(table.cells[0]))
    ended = f", all served after {table.steps}" if step >= table.steps else ""
    return f"<b>{name}</b>: {tokens} tokens in {done} steps{ended}; {idle:.0%} of the slots idle"


def _heatmap(z: Any, text: Any, requests: int, **more: Any) -> go.Heatmap:
    import plotly.graph_objects as go

    colours = [_EMPTY]
    colours += [_COLOURS[i % len(_COLOURS)] for i in range(requests)]
    colours += [_pale(_COLOURS[i % len(_COLOURS)]) for i in range(requests)]
    last = len(colours)
    scale = [(edge / last, c) for i, c in enumerate(colours) for edge in (i, i + 1)]
    shown = {} if text is None else {"text": text, "texttemplate": "%{text}"}
    return go.Heatmap(
        z=z,
        zmin=-0.5,
        zmax=last - 0.5,
        colorscale=scale,
        showscale=False,
        xgap=1,
        ygap=1,
        hoverinfo="skip",
        **shown,
        **more,
    )


def _pale(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.3)"


def _name(number: int) -> str:
    """Return the name of a request: A, B, ..., Z, A1, B1, ..."""
    return chr(ord("A") + number % 26) + (str(number // 26) if number >= 26 else "")


def _frame(figure: go.Figure, step: int, data: list[Any], titles: list[str]) -> go.Frame:
    import plotly.graph_objects as go

    notes = [note.to_plotly_json() for note in figure.layout.annotations]
    for note, title in zip(notes, titles, strict=True):
        note |= {"text": title, "x": 0, "xanchor": "left", "font": {"size": 13, "color": GREY}}
    return go.Frame(name=str(step), data=data, layout={"annotations": notes})


def _with_slider(figure: go.Figure, frames: list[Any], prefix: str, at: int = 0) -> go.Figure:
    """Show the frame `at`, with a slider over all of them."""
    for row, trace in enumerate(frames[at].data, 1):
        figure.add_trace(trace, row=row, col=1)
    figure.update_layout(annotations=frames[at].layout.annotations)
    figure.frames = frames
    now = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}}
    steps = [
        {"method": "animate", "label": frame.name, "args": [[frame.name], now]} for frame in frames
    ]
    slider = {"active": at, "steps": steps, "currentvalue": {"prefix": prefix}, "pad": {"t": 30}}
    return figure.update_layout(sliders=[slider], showlegend=False, margin={"t": 50, "b": 40})
