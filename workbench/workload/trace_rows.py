"""Open a trace file: find its format, and read some columns of its rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec

from workbench.errors import TraceError
from workbench.workload.file_lines import csv_rows, is_array, json_texts, read_lines
from workbench.workload.trace_formats import LENGTHS, SAMPLE, Format, Unit, find_format, find_unit

DELIMITERS = ",;\t"

_CSV_EXTRA = ("images", "session_id", "delay", "text_input")
_TYPES: dict[str, Any] = {
    "hash_ids": tuple[int, ...] | None,
    "text_input": str | None,
    "messages": tuple[dict[str, Any], ...] | None,
    "tools": tuple[dict[str, Any], ...] | None,
}

Row = tuple[int, tuple[Any, ...]]
"""The number of a line, and the raw values of its columns."""


@dataclass
class TraceRows:
    """An open trace file.

    `columns` are the names in the file of the values of each row: those of time, prompt tokens and
    output tokens, then those of `extra`. `prefixes` tells whether the file has hash ids.
    """

    file: Path
    format: Format
    unit: Unit
    columns: tuple[str, ...]
    extra: tuple[str, ...]
    rows: Iterator[Row]
    prefixes: bool = False

    def where(self, number: int, column: int) -> str:
        """Return the place of a value, for a message."""
        return f"{self.file}, line {number}, column {self.columns[column]!r}"


def open_rows(
    file: Path, columns: Mapping[str, str], unit: Unit | None, wanted: Iterable[str]
) -> TraceRows:
    """Open a trace file.

    Args:
        file: The file.
        columns: The names of `LENGTHS` for columns of the file that have other names.
        unit: The unit of time; None to find it.
        wanted: Names of `Format.extra` to read, where the file has them.

    Raises:
        TraceError: The file is empty or invalid, its format is unknown, or its unit of time is.
    """
    first = b"["
    if not is_array(file):
        first = next((line for line in read_lines(file) if line.strip()), b"")
    if not first:
        raise TraceError(f"{file}, line 1: the file is empty; expected requests")
    if first.lstrip()[:1] in (b"{", b"["):
        return _open_json(file, columns, unit, wanted)
    return _open_csv(file, columns, unit, wanted, first)


def _rename(where: str, names: Iterable[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Return the column of the file by the name under which it is used."""
    header = list(names)
    for column in columns:
        if column not in header:
            raise TraceError(
                f"{where}: column {column!r} of TraceReplay.columns is missing; "
                f"there are {', '.join(header)}"
            )
    return {columns.get(column, column): column for column in header}


def _found(where: str, names: Mapping[str, str], columns: Mapping[str, str]) -> Format:
    found = find_format(where, names)
    if columns and found.required != LENGTHS.required:
        raise TraceError(
            f"{where}: TraceReplay.columns is for unknown formats, and this is {found.name}; "
            "leave it out"
        )
    return found._replace(name="columns") if columns and found.name == LENGTHS.name else found


def _open_csv(
    file: Path, columns: Mapping[str, str], unit: Unit | None, wanted: Iterable[str], first: bytes
) -> TraceRows:
    delimiter = max(DELIMITERS, key=first.decode("utf-8", "surrogateescape").count)
    rows = csv_rows(file, delimiter)
    number, row = next(rows, (1, [""]))
    header = [name.strip() for name in row]
    where = f"{file}, line {number}"
    names = _rename(where, header, columns)
    trace_format = _found(where, names, columns)
    missing = [column for column in trace_format.required if column not in names]
    if missing:
        raise TraceError(f"{where}: column {missing[0]!r} is missing; there are {', '.join(names)}")
    extra = tuple(
        name for name in wanted if name in _CSV_EXTRA and trace_format.extra.get(name) in names
    )
    used = [names[column] for column in _used(trace_format, extra)]
    positions = [header.index(column) for column in used]
    unit = unit or trace_format.unit
    if unit is None:
        sample = list(islice(rows, SAMPLE))
        values = [(row[positions[0]], None, None) for _, row in sample if len(row) > positions[0]]
        unit = find_unit(where, values) if values else "s"
        rows = chain(sample, rows)
    return TraceRows(
        file, trace_format, unit, tuple(used), extra, _csv_values(file, header, positions, rows)
    )


def _used(trace_format: Format, extra: Iterable[str]) -> list[str]:
    return [*trace_format.required, *(trace_format.extra[name] for name in extra)]


def _csv_values(
    file: Path, header: list[str], positions: Sequence[int], rows: Iterator[tuple[int, list[str]]]
) -> Iterator[Row]:
    pick, width = itemgetter(*positions), len(header)
    for number, row in rows:
        if len(row) != width:
            column = repr(header[len(row)]) if len(row) < width else f"{width + 1}"
            raise TraceError(
                f"{file}, line {number}, column {column}: the line has {len(row)} fields, "
                f"the header {width}"
            )
        yield number, pick(row)


def _open_json(
    file: Path, columns: Mapping[str, str], unit: Unit | None, wanted: Iterable[str]
) -> TraceRows:
    texts = json_texts(file)
    sample = list(islice(texts, 1))
    if not sample:
        raise TraceError(f"{file}, line 1: the array is empty; expected requests")
    number, first = sample[0]
    fields = decode(file, number, first, msgspec.json.Decoder(dict[str, Any]))
    where = f"{file}, line {number}"
    names = _rename(where, fields, columns)
    trace_format = _found(where, names, columns)
    # Each line of an AIPerf trace has some of the columns.
    mixed = trace_format.name == "AIPerf"
    extra = tuple(
        name for name in wanted if name in trace_format.extra and (mixed or name in names)
    )
    back = {use: column for column, use in columns.items()}
    used = [back.get(column, column) for column in _used(trace_format, extra)]
    unit = unit or trace_format.unit
    if unit is None:
        sample += islice(texts, SAMPLE - 1)
        decoder = _decoder([*used[:2], back.get("hash_ids", "hash_ids")], ("hash_ids",), 0)
        values = [_values(file, number, text, decoder) for number, text in sample]
        unit = find_unit(where, values)
    decoder = _decoder(used, extra, 0 if mixed else len(trace_format.required))
    rows = _json_values(file, chain(sample, texts), decoder, trace_format.sorted_by_time)
    prefixes = "hash_ids" in names
    return TraceRows(file, trace_format, unit, tuple(used), extra, rows, prefixes)


def _decoder(
    columns: Sequence[str], extra: Sequence[str], required: int
) -> msgspec.json.Decoder[Any]:
    """Return a decoder that skips all other fields, which may be most of a line."""
    kinds = [Any] * (len(columns) - len(extra)) + [_TYPES.get(name, Any) for name in extra]
    fields = [
        (f"c{i}", kind) if i < required else (f"c{i}", kind, None) for i, kind in enumerate(kinds)
    ]
    rename = {f"c{i}": column for i, column in enumerate(columns)}
    return msgspec.json.Decoder(msgspec.defstruct("Line", fields, rename=rename))


def _json_values(
    file: Path,
    texts: Iterable[tuple[int, bytes]],
    decoder: msgspec.json.Decoder[Any],
    may_not_be_cut_off: bool,
) -> Iterator[Row]:
    for number, text in texts:
        if not may_not_be_cut_off and not text.endswith((b"\n", b"}")):
            return  # The last line of a run that was killed while it wrote.
        yield number, _values(file, number, text, decoder)


def _values(
    file: Path, number: int, text: bytes, decoder: msgspec.json.Decoder[Any]
) -> tuple[Any, ...]:
    return msgspec.structs.astuple(decode(file, number, text, decoder))


def decode(file: Path, number: int, text: bytes, decoder: msgspec.json.Decoder[Any]) -> Any:
    """Decode one line.

    Raises:
        TraceError: It is invalid. The message names the file, the line and, if known, the column.
    """
    try:
        return decoder.decode(text)
    except msgspec.ValidationError as problem:
        match = re.search(r"(?:field `|at `\$\.)([^`.\[]+)", str(problem))
        column = f", column {match[1]!r}" if match else ""
        raise TraceError(f"{file}, line {number}{column}: {problem}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise TraceError(f"{file}, line {number}: {problem}") from None
