"""Read a text file as a stream: plain or gzip, UTF-8 or UTF-16, CSV, JSON lines or a JSON array.

One line, or one object of an array, is in memory at a time, and its length is bounded. So memory
stays flat whatever the file holds.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from codecs import getincrementaldecoder
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from workbench.errors import TraceError

MAX_LINE_BYTES = 16 * 2**20
"""The longest line, or object of a JSON array, that is read."""

_CHUNK = 2**16
_GZIP = b"\x1f\x8b"
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_SPACE = re.compile(r"\s*")
_UTF8_MARK = b"\xef\xbb\xbf"


class _Stream(Protocol):
    """The methods of an open file that are used."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes."""
        ...

    def readline(self, size: int, /) -> bytes:
        """Return the next line, or its first `size` bytes."""
        ...


def read_lines(file: Path) -> Iterator[bytes]:
    """Yield the lines of a text file as UTF-8 with their line ends.

    Raises:
        TraceError: The file cannot be read, is a pointer of Git LFS, or has a line that is too long
            or cannot be decoded. The message names the line.
    """
    with _opened(file) as stream:
        number = 0
        while line := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise TraceError(
                    f"{file}, line {number}: the line is longer than {MAX_LINE_BYTES} bytes; "
                    "expected one request per line"
                )
            yield line


@contextmanager
def _opened(file: Path) -> Iterator[_Stream]:
    """Open a file for reading as UTF-8, and name it in the errors of the `with` block."""
    try:
        with file.open("rb") as raw:
            yield _decoded(file, raw)
    except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
        raise TraceError(f"{file}: its gzip data is invalid or cut off: {problem}") from None
    except UnicodeDecodeError as problem:
        raise TraceError(f"{file}: its UTF-16 is invalid or cut off: {problem.reason}") from None
    except OSError as problem:
        raise TraceError(f"{file} cannot be read: {problem.strerror or problem}") from None


def _decoded(file: Path, raw: io.BufferedReader) -> _Stream:
    """Return the content without compression, UTF-16 and byte order mark."""
    stream: io.BufferedReader | gzip.GzipFile = raw
    if raw.peek(len(_GZIP)).startswith(_GZIP):
        stream = gzip.GzipFile(fileobj=raw)
    head = stream.peek(len(_LFS_POINTER))
    if head.startswith(_LFS_POINTER):
        raise TraceError(
            f"{file} is a pointer of Git LFS, not the data: run `git lfs pull` in its repository, "
            "or download the file itself"
        )
    if encoding := _utf16(head):
        return _Recoded(io.TextIOWrapper(stream, encoding, newline="\n"))
    if head.startswith(_UTF8_MARK):
        stream.read(len(_UTF8_MARK))
    return stream


def _utf16(head: bytes) -> str | None:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    if len(head) < 2 or (head[0] and head[1]):
        return None
    return "utf-16-be" if head[1] else "utf-16-le"


class _Recoded:
    """A text that is read as UTF-8."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text

    def readline(self, size: int, /) -> bytes:
        return self._text.readline(size).encode("utf-8", "surrogatepass")

    def read(self, size: int, /) -> bytes:
        return self._text.read(size).encode("utf-8", "surrogatepass")


def csv_rows(file: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not blank, with their line numbers.

    A byte that is not UTF-8 fails when its column is read.
    """
    texts = (line.decode("utf-8", "surrogateescape") for line in read_lines(file))
    reader = csv.reader(texts, delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as problem:
        raise TraceError(f"{file}, line {reader.line_num}: {problem}") from None


def json_texts(file: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the JSON texts of a file that has one per line, or one array, with line numbers."""
    return _ArrayFile(file).items() if is_array(file) else _texts(file)


def _texts(file: Path) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(read_lines(file), 1):
        if not line.isspace():
            yield number, line


def is_array(file: Path) -> bool:
    """Return whether the first character of a file that is not a space is '['."""
    with _opened(file) as stream:
        while chunk := stream.read(_CHUNK):
            if head := chunk.lstrip():
                return head.startswith(b"[")
    return False


class _ArrayFile:
    """A file with one JSON array, of which a part is in memory."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._text, self._at, self._number = "", 0, 1
        self._decoder = json.JSONDecoder()

    def items(self) -> Iterator[tuple[int, bytes]]:
        """Yield the items as JSON texts, with the numbers of their first lines."""
        with _opened(self._file) as stream:
            self._stream = stream
            self._to_utf8 = getincrementaldecoder("utf-8")("surrogateescape")
            self._next_character()
            self._drop(self._at + 1)
            while self._next_character() != "]":
                number = self._number
                yield number, self._take_item().encode("utf-8", "surrogateescape")
                if self._next_character() == ",":
                    self._drop(self._at + 1)
                elif self._next_character() != "]":
                    raise self._error("expected ',' or ']' after an item of the array")
            self._drop(self._at + 1)
            if self._next_character(at_end=True):
                raise self._error("expected nothing after the end of the array")

    def _next_character(self, *, at_end: bool = False) -> str:
        while True:
            self._drop(_SPACE.match(self._text, self._at).end())  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read():
                if at_end:
                    return ""
                raise self._error("the array is cut off: expected ']'")

    def _take_item(self) -> str:
        while True:
            try:
                _, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as problem:
                held = len(self._text) - self._at
                if held > MAX_LINE_BYTES:
                    reason = f"is invalid ({problem.msg}) or longer than {MAX_LINE_BYTES} bytes"
                    raise self._error(f"an item of the array {reason}") from None
                # As much again, so that the work stays linear in the length of the item.
                if not self._read(max(held, _CHUNK)):
                    raise self._error(f"an item is invalid or cut off: {problem.msg}") from None
                continue
            item = self._text[self._at : end]
            self._drop(end)
            return item

    def _drop(self, end: int) -> None:
        self._number += self._text.count("\n", self._at, end)
        self._at = end

    def _read(self, size: int = _CHUNK) -> bool:
        chunk = self._stream.read(size)
        self._text = self._text[self._at :] + self._to_utf8.decode(chunk, not chunk)
        self._at = 0
        return bool(chunk)

    def _error(self, reason: str) -> TraceError:
        return TraceError(f"{self._file}, line {self._number}: {reason}")
