"""The scripts of the checkout as modules."""

from __future__ import annotations

import importlib.util
from types import ModuleType

from support.paths import ROOT

SCRIPTS = ROOT / "scripts"


def load(name: str) -> ModuleType:
    """A script as a module; they are no package."""
    spec = importlib.util.spec_from_file_location(f"scripts_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
