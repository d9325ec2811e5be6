"""The source and the attributes of installed packages."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def folder(package: str) -> Path:
    """The folder of a package, without importing it."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def source(package: str, *path: str) -> str:
    """The text of a module of a package, without importing it."""
    return folder(package).joinpath(*path).read_text()


def find_attribute(name: str) -> Any:
    """The value of `module:attribute.attribute`; imports the module."""
    module, _, path = name.partition(":")
    value: Any = import_module(module)
    for part in path.split("."):
        value = getattr(value, part)
    return value
