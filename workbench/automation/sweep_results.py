"""The results of a sweep: `results.csv`, and a short table."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.automation.grid import Cell, Sweep
from workbench.metrics.registry import COUNTS, RATES, compared_figures
from workbench.runs.redact import redact

RESULT_METRICS = (*COUNTS, "duration", *RATES, *compared_figures("median", "p95", "p99"))
"""The metrics of `summary.json` in `results.csv`."""
_SHOWN = (
    *("completed", "failed", "shed", "request_throughput", "output_throughput", "slo_attainment"),
    *("median_ttft_ms", "p99_ttft_ms", "median_tpot_ms", "p99_e2el_ms", "client_limited"),
)


def write_results(out: Path, cells: Sequence[Cell], errors: Mapping[str, str]) -> None:
    """Write `results.csv`: a row per cell, with parameters, status and metrics.

    Args:
        out: The folder of the sweep.
        cells: All cells.
        errors: Errors by run id.
    """
    rows = [_row(out, cell, errors) for cell in cells]
    part = out / "results.part"
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    part.replace(out / "results.csv")


def _row(out: Path, cell: Cell, errors: Mapping[str, str]) -> dict[str, Any]:
    error, summary = errors.get(cell.run_id), dict[str, Any]()
    done = cell.is_done(out)
    if done:
        try:
            summary = json.loads((out / cell.run_id / "summary.json").read_bytes())
        except ValueError:
            error = "cannot read its summary.json: remove the folder of the run to run it again"
    status = "failed" if error else "done" if done else "pending"
    row = {"run_id": cell.run_id, "repeat": cell.repeat, "status": status}
    row |= {name: summary.get(name) for name in RESULT_METRICS}
    row |= {"client_limited": (summary.get("client_health") or {}).get("client_limited")}
    # A parameter of the notebook may have the name of a metric, such as `duration`.
    parameters = {
        f"parameter_{name}" if name in row else name: value
        for name, value in redact(cell.parameters).items()
    }
    return {**parameters, **row, "error": error}


def results_table(out: Path, sweep: Sweep) -> str:
    """Return what varies and the main metrics of `results.csv` as aligned text."""
    with (out / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    varied = [name if name in rows[0] else f"parameter_{name}" for name in sorted(sweep.grid)]
    wanted = [*varied, "repeat", "status", *_SHOWN]
    names = [name for name in wanted if any(row[name] for row in rows)]
    lines = [names, *([_short(row[name]) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True))
        for line in lines
    )


def _short(text: str) -> str:
    try:
        return f"{float(text):.4g}" if "." in text else text or "-"
    except ValueError:
        return text
