"""The scripts of the checkout as modules."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from support.paths import ROOT

SCRIPTS = ROOT / "scripts"


def load(name: str) -> ModuleType:
    """Import a script by its path; the scripts are not a package."""
    spec = importlib.util.spec_from_file_location(f"scripts_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Only now, for the modules that scripts share: tests/clients has the name of a script.
    sys.path.append(str(SCRIPTS))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPTS))
    return module
