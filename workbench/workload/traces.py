"""Recorded requests: published trace files, and the runs of this workbench.

`workbench.workload.trace_formats` has the formats. A file is read as a stream, but whole, because
its rows may be out of order; with `limit` alone, only that many rows of it are read.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from workbench.errors import TraceError
from workbench.workload.arrivals import TraceReplay
from workbench.workload.trace_request import Trace, TraceRequest
from workbench.workload.trace_rows import TraceRows, open_rows
from workbench.workload.trace_table import CONTENT, TraceTable
from workbench.workload.trace_values import read_date, read_number

_ALWAYS = ("images", "session_id", "delay")


def read_trace(
    path: str | Path,
    *,
    start_s: float | None = None,
    end_s: float | None = None,
    speed: float = 1.0,
    limit: int | None = None,
    **options: Any,
) -> list[TraceRequest]:
    """Return the requests of a trace file, or of a run's folder, in the order of their times.

    The time of a trace starts with its first request.

    Args:
        path: The file or the folder.
        start_s: Start of the cut (inclusive). The offsets count from here.
        end_s: End of the cut (exclusive).
        speed: The offsets are divided by it.
        limit: Maximum number of requests. Without a cut, further rows are not read.
        options: Further fields of `TraceReplay`: `time_unit`, `columns` and `block_size`.

    Raises:
        SpecError: A bound or the speed is out of range.
        TraceError: The format or its unit of time is unknown, a column is missing, a time is
            negative, a row is invalid, or the cut has no request. The message names file, line and
            column.
    """
    cut = {"start_s": start_s, "end_s": end_s, "speed": speed, "limit": limit}
    return replay_trace(TraceReplay(path=str(path), **cut, **options)).requests


def replay_trace(spec: TraceReplay, *, content: bool = False) -> Trace:
    """Return the trace that `spec` names, as `read_trace` does.

    Args:
        spec: The file and the cut.
        content: Whether to read also the hash ids and the prompts.
    """
    file = Path(spec.path)
    file = file / "requests.jsonl" if file.is_dir() else file
    unit = None if spec.time_unit == "auto" else spec.time_unit
    rows = open_rows(file, spec.columns, unit, [*_ALWAYS, *(CONTENT if content else ())])
    table = TraceTable(rows, _times(rows, spec))
    whole = spec.start_s is spec.end_s is None and rows.format.sorted_by_time
    table.read(islice(rows.rows, spec.limit if whole else None))
    trace = table.trace(spec)
    if not trace.requests:
        raise TraceError(
            f"{file}: no request from start_s = {spec.start_s} to end_s = {spec.end_s}; "
            "widen the cut or give another file"
        )
    return trace


def _times(rows: TraceRows, spec: TraceReplay) -> Any:
    """Return the function that reads a time."""
    if rows.format.unit == "date" and spec.time_unit != "auto":
        raise TraceError(
            f"{rows.file}: the times of a {rows.format.name} trace are dates, got "
            f"TraceReplay.time_unit = {spec.time_unit!r}; leave it out"
        )
    return read_date if rows.unit == "date" else read_number
