"""Following a file of JSON lines."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from workbench.runs.tail import Tail


def test_each_complete_line_is_read_once(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    tail = Tail(file, dict[str, int])
    assert tail.new() == []
    with file.open("a") as lines:
        for text, expected in [
            ('{"a": 1}\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
            ('{"a"', []),
            (': 3}\n{"a": 4}', [{"a": 3}]),
            ("\n", [{"a": 4}]),
            ("", []),
        ]:
            lines.write(text)
            lines.flush()
            assert tail.new() == expected


def test_line_of_another_kind_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_text("[1]\n")
    with pytest.raises(msgspec.ValidationError):
        Tail(file, dict[str, int]).new()
