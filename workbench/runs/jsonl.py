"""Write and read JSON files and files of JSON lines, so that a crash leaves them readable."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from workbench.errors import RunError


class JsonLines:
    """A file of JSON lines. Each is appended in one write, so that a crash cuts only the last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def append(self, value: Any) -> None:
        """Append one line.

        Raises:
            RunError: The file cannot be written.
        """
        if self._descriptor is None:
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
            with _write_errors(self.path):
                self._descriptor = os.open(self.path, flags, 0o644)
            self._drop_cut_line(self._descriptor)
        line = msgspec.json.encode(value) + b"\n"
        with _write_errors(self.path):
            written = os.write(self._descriptor, line)
            if written != len(line):
                # A part of a line is not a line, and the next would be appended to it.
                os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _drop_cut_line(self, descriptor: int) -> None:
        # Appending to it would make an invalid line in the middle of the file.
        data = self.path.read_bytes() if os.fstat(descriptor).st_size else b""
        if data and not data.endswith(b"\n"):
            os.ftruncate(descriptor, data.rfind(b"\n") + 1)

    def read(self, kind: Any) -> Iterator[Any]:
        """Yield the complete lines as values of the type `kind`.

        Raises:
            RunError: A line is invalid. The message names the file and the line.
        """
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


def read_document(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        RunError: The file is not a JSON object.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except msgspec.MsgspecError as problem:
        raise RunError(f"{path} cannot be read: {problem}") from None


def write_document(path: Path, document: Any) -> None:
    """Write `document` as JSON. A crash leaves the complete file, or the one before, or none.

    Raises:
        RunError: The file cannot be written.
    """
    part = path.with_suffix(".part")
    with _write_errors(path), part.open("wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    """Raise an OSError as a RunError that names the file and the fix."""
    try:
        yield
    except OSError as problem:
        raise RunError(
            f"{path} cannot be written: {problem.strerror or problem}. Everything written "
            "before is kept and can be read; make room, and start the run again."
        ) from None
