"""The JupyterLab extension as the repository has it, for a server that it is not installed in."""

from __future__ import annotations

import shutil
from pathlib import Path

from support.paths import ROOT

PACKAGE = ROOT / "workbench" / "jupyter"


def extension_variables(folder: Path) -> dict[str, str]:
    """Lay out the extension's files below the folder; return the variables that name the places."""
    share, etc = folder / "share", folder / "etc"
    shutil.copytree(PACKAGE / "labextension", share / "labextensions" / "llm-serving-workbench")
    (etc / "jupyter_server_config.d").mkdir(parents=True)
    shutil.copy(PACKAGE / "data" / "workbench.json", etc / "jupyter_server_config.d")
    return {
        "JUPYTER_PATH": str(share),
        "JUPYTER_CONFIG_PATH": str(etc),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),  # also has what a page was left with
        "PYTHONPATH": str(ROOT),
        "RAY_TMPDIR": str(folder),
    }
