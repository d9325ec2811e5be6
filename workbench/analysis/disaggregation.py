"""Disaggregated prefill and decode against colocated replicas: figures by rate, and in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from workbench.analysis.compare import compare_runs, runs_health
from workbench.analysis.paired_ratio import ComparedFigure
from workbench.analysis.tables import label_of, readable_comparison
from workbench.experiments.disaggregation import kv_transfers
from workbench.quantities import quantity, significant

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from workbench.runs.run import Run

    Rows = dict[Any, dict[Any, Any]]

COUNTS = ("completed", "failed", "shed")
LATENCIES = ("p50_ttft_ms", "p95_ttft_ms", "p50_tpot_ms", "p95_tpot_ms")
TRANSFERS = {"kv_transfer_ms": "ms", "kv_transfer_mib": "MiB"}
_COLUMNS = ["rate", "figure", *ComparedFigure._fields]
_RENAMED = {"baseline": "colocated", "candidate": "split"}


def disaggregation_frame(runs: Sequence[Run], *, rng: np.random.Generator) -> pd.DataFrame:
    """Compare the runs of both variants at each rate.

    Args:
        runs: The runs of a `DisaggregationTrial`. Their experiments have `variant`
            ("colocated" or "split"), `rate` and `repeat`; repeats with the same number are pairs.
        rng: Source of the bootstrap's randomness.

    Returns:
        A row per rate and figure: counts, latencies in ms, and the mean time and size of a KV
        transfer. `colocated` and `split` are means over the repeats; `ratio` is split over
        colocated, and `low`, `high` and `verdict` are those of `compare_runs`. Rates that were
        not measured with both variants are left out. `attrs["client_health"]` has the combined
        health of all runs.
    """
    import pandas as pd

    rates = sorted({float(run.experiment["rate"]) for run in runs})
    rows = list(chain.from_iterable(_rows(rate, runs, rng) for rate in rates))
    frame = pd.DataFrame(rows, columns=_COLUMNS).rename(columns=_RENAMED)
    frame.attrs["client_health"] = runs_health(runs).model_dump(mode="json")
    return frame


def _rows(rate: float, runs: Sequence[Run], rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    colocated, split = (_runs_of(name, rate, runs) for name in _RENAMED.values())
    if not colocated or len(colocated) != len(split):
        return
    compared = compare_runs(colocated, split, (*COUNTS, *LATENCIES), rng=rng)
    for row in compared.itertuples():
        yield (rate, *row)
    yield from _transfer_rows(rate, split)


def _runs_of(variant: str, rate: float, runs: Sequence[Run]) -> list[Run]:
    facts = ((run, run.experiment) for run in runs)
    own = [run for run, fact in facts if (fact["variant"], fact["rate"]) == (variant, rate)]
    return sorted(own, key=lambda run: int(run.experiment["repeat"]))


def _transfer_rows(rate: float, split: Sequence[Run]) -> Iterator[tuple[Any, ...]]:
    reported = kv_transfers(chain.from_iterable(run.samples() for run in split))
    means = (reported.mean_ms, reported.mean_mib) if reported else (None, None)
    for (figure, unit), mean in zip(TRANSFERS.items(), means, strict=True):
        ratio = (math.nan, math.nan, math.nan)
        verdict = "only split transfers" if reported else "not reported"
        yield (rate, figure, unit, None, mean, *ratio, len(split), verdict)


def disaggregation_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame of `disaggregation_frame` as text, by rate and figure."""
    import pandas as pd

    original = {new: old for old, new in _RENAMED.items()}
    tables = {
        _rate_label(rate): readable_comparison(part.set_index("figure").rename(columns=original))
        for rate, part in frame.groupby("rate")
    }
    if not tables:
        return frame
    return pd.concat(tables, names=["rate"]).rename(columns=_RENAMED)


def disaggregation_lines(frame: pd.DataFrame) -> list[str]:
    """Return what a frame of `disaggregation_frame` shows, in sentences."""
    if frame.empty:
        return ["Disaggregated prefill and decode was not measured."]
    lines = []
    for rate, part in frame.groupby("rate"):
        rows: Rows = part.set_index("figure").to_dict("index")
        at = f"At {_rate_label(rate)}"
        lines += [f"{at}, {_latency(rows, figure)}." for figure in ("p95_ttft_ms", "p95_tpot_ms")]
        lines += _failures(at, rows)
        lines.append(f"{at}, {_transfer(rows)}.")
    if frame.attrs.get("client_health", {}).get("client_limited"):
        lines.append("The client limited at least one load, so the ratios are not reliable.")
    return lines


def _rate_label(rate: Any) -> str:
    return f"{significant(float(rate))} requests/s"


def _latency(rows: Rows, figure: str) -> str:
    row, label = rows[figure], label_of(figure)
    split, colocated = (quantity(row[name], "ms") for name in ("split", "colocated"))
    ratio = "no ratio"
    if not math.isnan(row["ratio"]):
        ratio = f"ratio {significant(row['ratio'])}"
    if not math.isnan(row["low"]):
        ratio += f", interval {significant(row['low'])} to {significant(row['high'])}"
    return (
        f"{label} was {split} with split replicas and {colocated} with colocated ones "
        f"({ratio}; {row['verdict']})"
    )


def _failures(at: str, rows: Rows) -> list[str]:
    split, colocated = (
        rows["failed"][name] + rows["shed"][name] for name in ("split", "colocated")
    )
    if not split and not colocated:
        return []
    return [
        f"{at}, failed or shed requests per load: {significant(split)} with split replicas, "
        f"{significant(colocated)} with colocated ones. Latencies are those of completed requests."
    ]


def _transfer(rows: Rows) -> str:
    time_ms, size_mib = (rows[figure]["split"] for figure in TRANSFERS)
    if math.isnan(time_ms):
        return "the connector reported no KV transfers"
    moved = quantity(size_mib, TRANSFERS["kv_transfer_mib"])
    return f"a KV transfer took {quantity(time_ms, 'ms')} and moved {moved} on average"
