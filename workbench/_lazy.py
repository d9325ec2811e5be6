"""Load the public names of a package when they are first used.

A package lists its names once, as imports under ``if TYPE_CHECKING:``. Type checkers and editors
read these imports as they are; at runtime `lazy_names` reads the same list and imports nothing.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any


def lazy_names(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` for the package or module `package`."""
    file = sys.modules[package].__file__
    assert file is not None
    origins = {
        alias.asname or alias.name: (statement.module or "", alias.name)
        for statement in type_checking_imports(Path(file).read_text(encoding="utf-8"))
        for alias in statement.names
    }

    def load(name: str) -> Any:
        if name not in origins:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, attribute = origins[name]
        if module == package:
            return import_module(f"{package}.{attribute}")
        return getattr(import_module(module), attribute)

    names = sorted(origins)
    return load, lambda: list(names), names


def type_checking_imports(source: str) -> Iterator[ast.ImportFrom]:
    """Yield the ``from ... import`` statements of a module's ``if TYPE_CHECKING:`` block."""
    for statement in ast.parse(source).body:
        match statement:
            case ast.If(test=ast.Name(id="TYPE_CHECKING"), body=body):
                yield from (node for node in body if isinstance(node, ast.ImportFrom))
