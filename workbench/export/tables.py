"""Write the requests and the summaries of runs as CSV or Parquet."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from workbench.errors import RunError, SettingError
from workbench.export.facts import metrics_of, parameters_of
from workbench.metrics.columns import Columns
from workbench.metrics.registry import PER_REQUEST
from workbench.records import RequestRecord

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from workbench.runs.run import Run

CHUNK = 10_000
"""Requests that are in memory at a time."""

_INTEGERS = ("prompt_tokens", "output_tokens")


def write_requests(runs: Run | Iterable[Run], path: str | Path) -> Path:
    """Write the requests of runs, one row each, to a file.

    The columns are `run_id`, the fields of `wb.client.RequestRecord`, and the latencies in ms of
    `Run.requests_frame`. In Parquet, `token_times_s` is a list and `stages` a map; in CSV, both are
    JSON texts. The rows are written in chunks, so that the memory does not grow with the run.

    Args:
        runs: One run or several.
        path: The file, which ends in `.csv` or `.parquet`. An existing file is replaced.

    Returns:
        The path.

    Raises:
        SettingError: The path has another suffix.
        RunError: A line of a run is invalid, or the file cannot be written.
    """
    target = Path(path)
    _write(target, (chunk for run in _as_list(runs) for chunk in _chunks(run)), _schema())
    return target


def write_summaries(runs: Run | Iterable[Run], path: str | Path) -> Path:
    """Write `summaries_frame` of runs to a file; otherwise as `write_requests`."""
    import pyarrow as pa

    target = Path(path)
    table = pa.Table.from_pandas(summaries_frame(runs), preserve_index=False)
    _write(target, iter([table]), table.schema)
    return target


def summaries_frame(runs: Run | Iterable[Run]) -> pd.DataFrame:
    """Return a row per run: its id, date, parameters, and the figures of its summary.

    Parameters have the names in `experiment.json`, such as `parameters.rate`. A value that a run
    does not have is missing.

    Raises:
        RunError: A run is not finished.
    """
    import pandas as pd

    rows = []
    for run in _as_list(runs):
        summary = run.summary()
        if summary is None:
            raise RunError(f"run {run.run_id} has no summary: it was not finished; leave it out")
        facts = {"run_id": run.run_id, "date": run.document.get("date")}
        limited = {"client_limited": summary.client_health.client_limited}
        rows.append(facts | parameters_of(run) | metrics_of(summary) | limited)
    # A parameter may be a number in one run and a text in another.
    frame = pd.DataFrame(rows)
    mixed = [name for name in frame if frame[name].dropna().map(type).nunique() > 1]
    numbers = {name for name in mixed if frame[name].dropna().map(_is_number).all()}
    for name in mixed:
        kind = float if name in numbers else str
        frame[name] = frame[name].map(kind, na_action="ignore")
    return frame


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_list(runs: Run | Iterable[Run]) -> Sequence[Run]:
    from workbench.runs.run import Run

    return [runs] if isinstance(runs, Run) else list(runs)


def _schema() -> pa.Schema:
    import pyarrow as pa

    kinds = {
        "token_times_s": pa.list_(pa.float64()),
        "stages": pa.map_(pa.string(), pa.float64()),
        **dict.fromkeys(_INTEGERS, pa.int64()),
    }
    names = [field.name for field in fields(RequestRecord)]
    times = {name: pa.float64() for name in names if name.endswith("_s") and name not in kinds}
    columns = [(name, {**times, **kinds}.get(name, pa.string())) for name in names]
    latencies = [(metric.key, pa.float64()) for metric in PER_REQUEST]
    return pa.schema([("run_id", pa.string()), *columns, *latencies])


def _chunks(run: Run) -> Iterator[pa.Table]:
    import pyarrow as pa

    records, schema = run.records(), _schema()
    while chunk := list(islice(records, CHUNK)):
        columns: dict[str, Any] = {"run_id": [run.run_id] * len(chunk)}
        for field in fields(RequestRecord):
            columns[field.name] = [getattr(record, field.name) for record in chunk]
        columns["stages"] = [stages and list(stages.items()) for stages in columns["stages"]]
        read = Columns.read(chunk)
        for metric in PER_REQUEST:
            columns[metric.key] = pa.array(metric.formula(read) * 1e3, from_pandas=True)
        yield pa.table(columns, schema=schema)


class _Writer(Protocol):
    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def write_table(self, table: pa.Table) -> None: ...


class _CsvWriter:
    """Writes tables as CSV, with lists and maps as JSON texts."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._file = path.open("w", encoding="utf-8", newline="")
        self._nested = [field.name for field in schema if _is_nested(field.type)]
        self._header = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write_table(self, table: pa.Table) -> None:
        frame = table.to_pandas(maps_as_pydicts="strict", integer_object_nulls=True)
        for name in self._nested:
            texts = map(_to_json, table[name].to_pylist(maps_as_pydicts="strict"))
            frame[name] = list(texts)
        frame.to_csv(self._file, index=False, header=self._header, lineterminator="\n")
        self._header = False


def _is_nested(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_nested(kind))


def _to_json(value: Any) -> str | None:
    return None if value is None else json.dumps(value)


def _write(path: Path, tables: Iterator[pa.Table], schema: pa.Schema) -> None:
    """Write tables to a file that appears complete."""
    import pyarrow.parquet as pq

    writers: dict[str, Callable[[Path, pa.Schema], _Writer]]
    writers = {".csv": _CsvWriter, ".parquet": partial(pq.ParquetWriter, compression="zstd")}
    if path.suffix not in writers:
        raise SettingError(f"path must end in {' or '.join(writers)}, got {str(path)!r}")
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with writers[path.suffix](part, schema) as writer:
            for table in tables:
                writer.write_table(table)
        part.replace(path)
    except OSError as problem:
        raise RunError(f"{path} cannot be written: {problem.strerror or problem}") from None
    finally:
        with suppress(OSError):
            part.unlink()
