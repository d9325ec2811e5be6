"""Tables as people read them: a label and a unit for every figure, and `-` for a missing one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from workbench.analysis.kv_cache import engine_peaks
from workbench.errors import RunError, UnknownMetricError
from workbench.metrics.registry import find_metric, metric_label
from workbench.quantities import NONE, quantity, significant

if TYPE_CHECKING:
    import pandas as pd

    from workbench.runs.run import Run

_SIDE_FIGURES = (
    *("completed", "failed", "shed", "cancelled", "request_goodput", "slo_attainment"),
    *("p50_ttft_ms", "p99_ttft_ms", "p50_tpot_ms"),
)
_OTHERS = {
    "peak_kv_cache": ("Peak KV cache in use", "share"),
    "peak_batch": ("Peak requests in the batch", "requests"),
    "preemptions": ("Preemptions", "requests"),
    "kv_transfer_ms": ("Mean time of a KV transfer", "ms"),
    "kv_transfer_mib": ("Mean size of a KV transfer", "MiB"),
    "failed_or_shed": ("Failed or shed", "requests"),
    "requests": ("Requests", "requests"),
    "ttft_p50_ms": ("p50 TTFT from schedule", "ms"),
    "ttft_p99_ms": ("p99 TTFT from schedule", "ms"),
    "replica_s": ("Replica-seconds", "replica-s"),
    "changes": ("Changes of the target", "requests"),
    "wanted_s": ("Second replica wanted after", "s"),
    "second_replica_s": ("First token of the second replica after", "s"),
    "flaps": ("Flaps", "requests"),
}
"""Labels and units of figures that are not in the registry of metrics."""


def label_of(figure: str) -> str:
    """Return the label of a figure, without its unit; an unknown name is returned as it is."""
    if figure in _OTHERS:
        return _OTHERS[figure][0]
    try:
        label = metric_label(figure).rpartition(" (")[0]
    except UnknownMetricError:
        return figure
    return label if label[:1] == "p" and label[1:2].isdigit() else label[:1].upper() + label[1:]


def unit_of(figure: str) -> str:
    """Return the unit of a figure, or an empty string for an unknown name."""
    if figure in _OTHERS:
        return _OTHERS[figure][1]
    try:
        return find_metric(figure).unit
    except UnknownMetricError:
        return ""


def sides_table(sides: Mapping[str, Run]) -> pd.DataFrame:
    """Return the results of finished runs side by side, as text: a row per figure.

    What did not complete is next to what did, and engine peaks come last.

    Raises:
        RunError: A run is not finished.
    """
    import pandas as pd

    columns = {}
    for name, run in sides.items():
        summary = run.summary()
        if summary is None:
            raise RunError(f"{run.path} is not finished, it has no summary.json: measure it first")
        figures = {figure: summary.figure(figure) for figure in _SIDE_FIGURES}
        figures |= engine_peaks(run.samples_frame("replica"))
        columns[name] = {label_of(f): quantity(v, unit_of(f)) for f, v in figures.items()}
    return pd.DataFrame(columns)


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """Return `table` as text, with its columns of figures under their labels.

    Args:
        table: A row per run, and a column per figure, as `runs_table` or `policy_table` return.
    """
    shown = {}
    for column in table.columns:
        figure = str(column).partition(" (")[0]
        shown[label_of(figure)] = [_text(value, unit_of(figure)) for value in table[column]]
    return type(table)(shown, index=table.index)


def readable_comparison(comparison: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `compare_runs` as text, with a label for each figure."""
    rows = {}
    for figure, row in comparison.iterrows():
        values = {side: quantity(row[side], row.unit) for side in ("baseline", "candidate")}
        ratios = {name: significant(row[name]) for name in ("ratio", "low", "high")}
        judged = {name: row[name] for name in ("repeats", "verdict")}
        rows[label_of(str(figure))] = values | ratios | judged
    return type(comparison).from_dict(rows, orient="index").rename_axis("figure")


def _text(value: Any, unit: str) -> str:
    import pandas as pd

    if value is None or value is pd.NA or value != value:
        return NONE
    return value if isinstance(value, str) else quantity(float(value), unit)
