"""Follow a file of JSON lines while another part of the program appends to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec


class Tail:
    """Reads the lines of `path`, each once, as values of the type `kind`."""

    def __init__(self, path: Path, kind: Any) -> None:
        self._path, self._offset = path, 0
        self._decode = msgspec.json.Decoder(kind).decode

    def new(self) -> list[Any]:
        """Return the complete lines that were appended since the last call; none without a file.

        Raises:
            msgspec.MsgspecError: A line is not such a value.
        """
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        end = data.rfind(b"\n") + 1
        self._offset += end
        return [self._decode(line) for line in data[:end].splitlines()]
