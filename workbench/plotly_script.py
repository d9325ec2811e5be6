"""The script that draws figures in a page: plotly.js with the traces on Cartesian axes only.

The file is `plotly.js-cartesian-dist-min` from npm, compressed, of the version that the Python
package has too. It is a third of the whole of plotly.js.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import plotly.graph_objects as go

FILE = Path(__file__).parent / "assets" / "plotly-cartesian-4.1.1.min.js.gz"
SHA256 = "79542150855a52c567260e3137095dbe2b744e6d702a5cabe67da246942fba7a"
"""Of the script, uncompressed."""
_CARTESIAN = frozenset({"bar", "box", "contour", "heatmap", "histogram", "scatter", "violin"})


def script_for(figures: Iterable[go.Figure]) -> str:
    """Return a script element that can draw `figures`: all of plotly.js only if one needs it."""
    from plotly.offline import get_plotlyjs

    small = all(trace.type in _CARTESIAN for figure in figures for trace in figure.data)
    text = _cartesian() if small else get_plotlyjs()
    return f"<script>{text}</script>"


@cache
def _cartesian() -> str:
    return gzip.decompress(FILE.read_bytes()).decode("utf-8")
