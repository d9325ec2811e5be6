"""Fill a folder with every wheel of a lock file, for machines without a network.

`make wheelhouse` runs this script on a machine with a network; `make setup WHEELHOUSE=FOLDER`
installs from that folder only. The wheels fit the Python version and the system that downloaded
them, so use the same ones on both machines.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from install import ROOT, SetupError, find_accelerator, report
from torch_index import PipError, run_pip, run_pip_for_torch

FOLDER = Path(os.environ.get("WHEELHOUSE") or ROOT / "wheelhouse").resolve()


def main() -> None:
    """Download, or build, the wheels of the lock that the folder does not have yet."""
    lock = ROOT / "requirements" / f"{find_accelerator()}.txt"
    FOLDER.mkdir(parents=True, exist_ok=True)
    report(f"downloading the wheels of requirements/{lock.name} into {FOLDER}")
    run_pip_for_torch(lock, fetch)
    fetch(["--require-hashes", "--requirement", str(lock)])
    wheels = list(FOLDER.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in wheels) / 2**30
    report(
        f"{len(wheels)} wheels, {size:.1f} GiB. Copy the folder to the other machine and run: "
        "make setup WHEELHOUSE=FOLDER"
    )


def fetch(arguments: list[str]) -> None:
    """Download the wheels that are not in the folder, or build those that are not offered."""
    command = ["wheel", "--no-deps", "--no-input", "--quiet", "--progress-bar", "off"]
    run_pip([*command, "--find-links", str(FOLDER), "--wheel-dir", str(FOLDER), *arguments])


if __name__ == "__main__":
    try:
        main()
    except (SetupError, PipError) as error:
        sys.exit(f"wheelhouse: {error}")
