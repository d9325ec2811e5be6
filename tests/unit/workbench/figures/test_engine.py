"""Engine pressure of two runs, from hand-made samples."""

from __future__ import annotations

import pandas as pd

from workbench.analysis.kv_cache import engine_peaks
from workbench.figures.engine import engine_pressure_figure

SIDE = pd.DataFrame(
    {
        "time_s": [0.0, 1.0, 2.0, 3.0],
        "kv_cache_usage": [0.1, 0.9, None, 0.5],
        "preemptions": [7, 7, 9, 12],
        "running_requests": [1, 12, 8, 0],
    }
)


def test_peaks_and_preemptions() -> None:
    peaks = engine_peaks(SIDE)
    assert peaks == {"peak_kv_cache": 0.9, "peak_batch": 12, "preemptions": 5}
    empty = engine_peaks(SIDE.iloc[:0])
    assert set(empty.values()) == {None}


def test_each_row_has_a_line_per_side_and_preemptions_start_at_zero() -> None:
    figure = engine_pressure_figure({"unlimited": SIDE, "finite": SIDE.assign(preemptions=3)})
    assert [trace.name for trace in figure.data] == ["unlimited"] * 3 + ["finite"] * 3
    assert list(figure.data[1].y) == [0, 0, 2, 5]
    assert list(figure.data[4].y) == [0] * 4
    assert sum(bool(trace.showlegend) for trace in figure.data) == 2
