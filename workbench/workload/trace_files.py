"""Read the lines of a CSV or JSONL trace file, some columns of each."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from workbench.errors import TraceError


class TraceLine(NamedTuple):
    """The number of a line, and the raw values of the columns in use."""

    number: int
    values: tuple[Any, ...]


CsvRows = Iterator[tuple[int, list[str]]]


def csv_rows(file: Path) -> CsvRows:
    """Yield the rows that are not blank. A byte that is not UTF-8 fails when its column is read."""
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        reader = csv.reader(text, strict=True)
        try:
            yield from ((reader.line_num, row) for row in reader if row)
        except csv.Error as problem:
            raise TraceError(f"{file}, line {reader.line_num}: {problem}") from None


def csv_lines(
    file: Path, columns: Sequence[str], header: list[str], rows: CsvRows
) -> Iterator[TraceLine]:
    """Yield the lines after the header."""
    positions = [header.index(column) for column in columns]
    for number, row in rows:
        if len(row) != len(header):
            column = repr(header[len(row)]) if len(row) < len(header) else f"{len(header) + 1}"
            raise TraceError(
                f"{file}, line {number}, column {column}: the line has {len(row)} fields, "
                f"the header {len(header)}"
            )
        yield TraceLine(number, tuple(row[position] for position in positions))


def json_columns(file: Path, line: bytes) -> Iterable[str]:
    """Return the columns of the first line of a JSONL file."""
    fields: dict[str, Any] = _decoded(file, 1, line, msgspec.json.Decoder(dict[str, Any]))
    return fields


def json_lines(file: Path, columns: Sequence[str], *, may_be_cut_off: bool) -> Iterator[TraceLine]:
    """Yield the lines, without an incomplete last one if the file may be cut off."""
    # A struct skips all other fields: the token times of a run are most of its bytes.
    shape = msgspec.defstruct("Line", [(column, Any) for column in columns])
    decoder = msgspec.json.Decoder(shape)
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if may_be_cut_off and not line.endswith(b"\n"):
                return
            if line.strip():
                values = msgspec.structs.astuple(_decoded(file, number, line, decoder))
                yield TraceLine(number, values)


def _decoded(file: Path, number: int, line: bytes, decoder: msgspec.json.Decoder[Any]) -> Any:
    try:
        return decoder.decode(line)
    except msgspec.ValidationError as problem:
        match = re.search(r"field `(\w+)`", str(problem))
        column = f", column {match[1]!r}" if match else ""
        raise TraceError(f"{file}, line {number}{column}: {problem}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise TraceError(f"{file}, line {number}: {problem}") from None
