"""Fill a folder with every wheel of a lock file, so that a machine without a network can install.

`make wheelhouse` calls it where there is a network; `make setup WHEELHOUSE=FOLDER` installs from it
alone. Wheels fit one Python and one system: fill it with those of the machines that will use it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from install import ROOT, SetupError, find_accelerator, say

FOLDER = Path(os.environ.get("WHEELHOUSE") or ROOT / "wheelhouse").resolve()


def main() -> None:
    """Download (or build) what the lock names and is not there yet."""
    accelerator = find_accelerator()
    lock = ROOT / "requirements" / f"{accelerator}.txt"
    FOLDER.mkdir(parents=True, exist_ok=True)
    say(f"filling {FOLDER} from requirements/{lock.name}")
    pins = [line for line in lock.read_text().splitlines() if line and not line.startswith("#")]
    torch = next(pin for pin in pins if pin.startswith("torch=="))
    index = os.environ.get("TORCH_INDEX")
    fetch([torch, *(["--extra-index-url", index] if index else [])])
    fetch(["-r", str(lock)])
    wheels = list(FOLDER.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in wheels) / 2**30
    say(
        f"{len(wheels)} wheels, {size:.1f} GiB. Take the folder along: make setup WHEELHOUSE=FOLDER"
    )


def fetch(what: list[str]) -> None:
    """A wheel of each, built where there is none; those already there are taken as they are."""
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-input", "--quiet"]
    command += ["--progress-bar", "off", "--find-links", str(FOLDER), "--wheel-dir", str(FOLDER)]
    if subprocess.run([*command, *what], cwd=ROOT, check=False).returncode:
        raise SetupError("pip could not fetch every package; its own words stand above")


if __name__ == "__main__":
    try:
        main()
    except SetupError as error:
        sys.exit(f"wheelhouse: {error}")
