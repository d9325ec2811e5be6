"""Everything that is named by a string exists: deployments, policies, `-m` modules, import paths.

Ray Serve, vLLM, Python and Kubernetes import these by name, so that neither mypy nor an import
would notice a module that has moved.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
from support.paths import ROOT

PACKAGES = "serving", "workbench", "tools.tiny_model", "benchmarks"
# A dotted name, and after a colon an attribute as in `serve run module:attribute`.
REFERENCE = re.compile(
    rf"(?<![\w./-])(?:{'|'.join(map(re.escape, PACKAGES))})(?:\.[A-Za-z_]\w*)+(?::[A-Za-z_]\w*)?"
)
IMPORT = re.compile(
    rf"^\s*from ((?:{'|'.join(map(re.escape, PACKAGES))})[\w.]*) import ([\w, ]+)$", re.MULTILINE
)
FILES = "Makefile", ".ci/run", "pyproject.toml", "scripts/*.sh", "benchmarks/gpu.sh", "deploy/*"
NOT_OURS = {"workbench.ipynb", "workbench.json", "workbench.log"}


def strings(path: Path) -> Iterator[str]:
    """Every string constant of a Python file, docstrings included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def texts(path: Path) -> Iterator[str]:
    if path.suffix == ".py":
        yield from strings(path)
    elif path.suffix == ".ipynb":
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            yield "".join(cell["source"])
    else:
        yield path.read_text(encoding="utf-8")


def sources() -> Iterator[Path]:
    for folder in ("serving", "workbench", "tools", "benchmarks", "scripts", "tests", "notebooks"):
        for suffix in ("py", "ipynb"):
            yield from sorted((ROOT / folder).rglob(f"*.{suffix}"))
    for pattern in FILES:
        yield from sorted(path for path in ROOT.glob(pattern) if path.is_file())


def imported(text: str) -> Iterator[str]:
    """What the import statements of a program in a string name."""
    for module, names in IMPORT.findall(text):
        for name in names.split(","):
            yield f"{module}.{name.split()[0]}"


def references() -> dict[str, set[str]]:
    """Each reference, with the files that contain it."""
    found: dict[str, set[str]] = {}
    for path in sources():
        for text in texts(path):
            for match in [*REFERENCE.findall(text), *imported(text)]:
                found.setdefault(match, set()).add(str(path.relative_to(ROOT)))
    return found


def resolves(reference: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    first, *names = reference.replace(":", ".").split(".")
    value: object = import_module(first)
    while names:
        name = names.pop(0)
        if isinstance(value, ModuleType) and hasattr(value, "__path__"):
            path = f"{value.__name__}.{name}"
            if find_spec(path) is not None:
                value = import_module(path)
                continue
        if not hasattr(value, name):
            return not names and name in getattr(value, "__annotations__", {})
        value = getattr(value, name)
    return True


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("serving.deploy.app:build", True),
        ("serving.engine.replica.DirectReplica", True),
        ("serving.cluster.supervisor", True),
        ("serving.replica.DirectReplica", False),
        ("serving.engine.replica.NoSuchReplica", False),
    ],
)
def test_a_reference_resolves_only_if_it_exists(reference: str, expected: bool) -> None:
    assert resolves(reference) is expected


def test_every_reference_by_name_exists() -> None:
    found = references()
    here = str(Path(__file__).relative_to(ROOT))
    assert "serving.deploy.app:build" in found
    assert "serving.engine.amx.Extension" in found
    broken = {
        reference: sorted(files)
        for reference, files in found.items()
        if reference not in NOT_OURS and files != {here} and not resolves(reference)
    }
    assert not broken
