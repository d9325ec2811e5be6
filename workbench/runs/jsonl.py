"""Files of one JSON value per line, written whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
import msgspec
from pydantic import ValidationError
from serving.spec.base import explain
from workbench.runs import journal
from workbench.errors import RunError
from workbench.runs.provenance import hardware, versions
from workbench.records import RequestRecord
from workbench.runs.redact import redact
from workbench.records import Sample, Sampled, columns, line, read
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import pandas as pd
    from workbench.records import LoadChange
    from workbench.metrics.summary import Summary


class JsonLines:
    """A file of JSON lines, each appended with one write, so that a crash cuts only the last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def append(self, value: Any) -> None:
        if self._descriptor is None:
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
            with _disk(self.path):
                self._descriptor = os.open(self.path, flags, 0o644)
            self._drop_cut_line(self._descriptor)
        line = msgspec.json.encode(value) + b"\n"
        with _disk(self.path):
            written = os.write(self._descriptor, line)
            if written != len(line):
                # What fits of a line is no line, and the next would be appended to it.
                os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _drop_cut_line(self, descriptor: int) -> None:
        # Appending to it would make a broken line in the middle of the file.
        data = self.path.read_bytes() if os.fstat(descriptor).st_size else b""
        if data and not data.endswith(b"\n"):
            os.ftruncate(descriptor, data.rfind(b"\n") + 1)

    def read(self, kind: Any) -> Iterator[Any]:
        if not self.path.exists():
            return
        decode = msgspec.json.Decoder(kind).decode
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    return
                try:
                    yield decode(line)
                except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
                    raise RunError(
                        f"{self.path}, line {number}: {problem}. Remove the line to read the rest."
                    ) from None

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


def decode(file: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except msgspec.MsgspecError as problem:
        raise RunError(f"{file} cannot be read: {problem}") from None


def write_whole(path: Path, document: Any) -> None:
    """Write `document` as JSON: a crash leaves the whole file, or the one before, or none."""
    part = path.with_suffix(".part")
    with _disk(path), part.open("wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Say in one sentence what a disk does not take."""
    try:
        yield
    except OSError as problem:
        raise RunError(
            f"{path} cannot be written: {problem.strerror or problem}. All that was written before "
            "is kept and can be read; make room, and start the run again."
        ) from None
