"""The built JupyterLab extension in the repository: up to date, complete and installed."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from support import scripts
from support.paths import ROOT

EXTENSION = scripts.load("extension")


def test_the_built_files_are_those_of_the_sources() -> None:
    assert (EXTENSION.RESULT / EXTENSION.STAMP).read_text().strip() == EXTENSION.source_hash(), (
        "extension/ has changed; run make extension"
    )


def test_the_file_that_jupyterlab_loads_exists() -> None:
    package = json.loads((EXTENSION.RESULT / "package.json").read_text())
    assert (EXTENSION.RESULT / package["jupyterlab"]["_build"]["load"]).is_file()


def test_the_wheel_installs_the_extension_and_enables_its_routes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    files = project["tool"]["setuptools"]["data-files"]
    base = "share/jupyter/labextensions/llm-serving-workbench"
    installed = {
        path.relative_to(ROOT).as_posix(): folder
        for folder, patterns in files.items()
        for pattern in patterns
        for path in ROOT.glob(pattern)
    }
    for path in EXTENSION.RESULT.rglob("*"):
        if path.is_file() and path.name != EXTENSION.STAMP:
            place = Path(base) / path.relative_to(EXTENSION.RESULT).parent
            assert installed[path.relative_to(ROOT).as_posix()] == place.as_posix()
    settings = ROOT / "workbench" / "jupyter" / "data" / "workbench.json"
    assert installed[settings.relative_to(ROOT).as_posix()] == (
        "etc/jupyter/jupyter_server_config.d"
    )
    assert json.loads(settings.read_text()) == {
        "ServerApp": {"jpserver_extensions": {"workbench.jupyter": True}}
    }


def test_the_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    package = json.loads((ROOT / "extension" / "package.json").read_text())
    assert package["version"] == project["version"]


def test_the_lock_names_no_place_to_download_from() -> None:
    lock = (ROOT / "extension" / "yarn.lock").read_text()
    assert "://" not in lock.replace('"npm:', "")
