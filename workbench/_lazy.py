"""Load the public names of a package when they are first used.

A package lists its names once, as imports under ``if TYPE_CHECKING:``. Type checkers and editors
read these imports as they are; at runtime `lazy_names` reads the same list and imports nothing.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def lazy_names(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` for the package or module `package`."""
    file = sys.modules[package].__file__
    assert file is not None
    source = Path(file).read_text(encoding="utf-8")
    origins = {name: module for module, name in exported_names(source)}

    def load(name: str) -> Any:
        if name not in origins:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = origins[name]
        if module == package:
            return import_module(f"{package}.{name}")
        return getattr(import_module(module), name)

    names = sorted(origins)
    return load, lambda: list(names), names


def exported_names(source: str) -> Iterator[tuple[str, str]]:
    """Yield each name in a module's ``if TYPE_CHECKING:`` block, after the module it is from.

    An ``import *`` stands for the names in the other module's ``__all__``.
    """
    for statement in type_checking_imports(source):
        module = statement.module or ""
        for alias in statement.names:
            for name in _all_of(module) if alias.name == "*" else [alias.name]:
                yield module, name


def _all_of(module: str) -> list[str]:
    """Return the `__all__` of a module without importing it."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    values = [
        statement.value
        for statement in tree.body
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__"
    ]
    return list(ast.literal_eval(values[0]))


def type_checking_imports(source: str) -> Iterator[ast.ImportFrom]:
    """Yield the ``from ... import`` statements of a module's ``if TYPE_CHECKING:`` block."""
    for statement in ast.parse(source).body:
        match statement:
            case ast.If(test=ast.Name(id="TYPE_CHECKING"), body=body):
                yield from (node for node in body if isinstance(node, ast.ImportFrom))
