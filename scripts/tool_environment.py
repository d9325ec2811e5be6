"""Environments of the tools that make installs beside the project's own, such as build/audit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from torch_index import run_pip


def install(lock: Path, environment: Path) -> None:
    """Install a lock file into an environment, if that is missing or has other pins.

    Raises:
        PipError: pip failed.
    """
    stamp = environment / "installed"
    if stamp.exists() and stamp.read_text() == lock.read_text():
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
    python = ["--python", str(environment / "bin" / "python")]
    run_pip([*python, "install", "--quiet", "--no-deps", "--require-hashes", "-r", str(lock)])
    stamp.write_text(lock.read_text())
