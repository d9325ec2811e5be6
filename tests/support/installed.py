"""The source of installed packages."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def source(package: str, *path: str) -> str:
    found = find_spec(package)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent.joinpath(*path).read_text()
