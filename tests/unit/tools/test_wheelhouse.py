"""Installing from a folder of wheels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.offline import run_offline
from support.scripts import load


@pytest.mark.slow
def test_pip_installs_from_a_wheelhouse_without_a_network(tmp_path: Path) -> None:
    wheels, target = tmp_path / "wheels", tmp_path / "site"
    small = ["--no-deps", "--quiet", "six==1.17.0"]
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", "--wheel-dir", str(wheels), *small], check=True)
    install = load("install")
    saved = dict(os.environ)
    try:
        os.environ["WHEELHOUSE"] = str(wheels)
        install.use_wheelhouse()
        assert os.environ["PIP_NO_INDEX"] == "1"
        run_offline(*pip, "install", "--target", str(target), *small, timeout=120)
    finally:
        os.environ.clear()
        os.environ.update(saved)
    assert (target / "six.py").exists()


def test_a_folder_without_wheels_is_rejected_with_the_command_that_fills_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install = load("install")
    monkeypatch.setenv("WHEELHOUSE", str(tmp_path))
    with pytest.raises(install.SetupError, match=r"has no wheels.*make wheelhouse"):
        install.use_wheelhouse()
    monkeypatch.delenv("WHEELHOUSE")
    install.use_wheelhouse()
    assert "PIP_NO_INDEX" not in os.environ
