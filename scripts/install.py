"""Create .venv and install the pinned environment into it, with progress output.

`make setup` runs this script. It uses the standard library only, because nothing else is installed
yet. If the environment is up to date, it ends at once. After a failure or an interruption, it
continues where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

from torch_index import PipError, find_entry, hashed, read_pins, run_pip_for_torch

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = VENV / "install.log"
# The profile that .venv is for, written first, and the hash of what is installed, written last.
PROFILE = VENV / "profile"
STAMP = VENV / "installed"
MIN_PYTHON, MAX_PYTHON = (3, 11), (3, 14)  # the second is excluded
SECONDS_BETWEEN_LINES = 3.0
PIP = [str(PYTHON), "-m", "pip", "install", "--no-deps", "--no-input", "--progress-bar", "off"]
# The start of pip's line for each package, then the package's name or file.
FETCHING = re.compile(
    r"(?:Collecting|Processing|Requirement already satisfied:|Ignoring) ([^\s;:]+)"
)


class SetupError(Exception):
    """The environment cannot be created; the message states the reason and the fix."""


def main() -> None:
    """Create or update .venv; do nothing if it matches the lock file already."""
    check_host()
    use_wheelhouse()
    accelerator = find_accelerator()
    lock = ROOT / "requirements" / f"{accelerator}.txt"
    profile = f"{accelerator}, Python {dotted(sys.version_info[:2])}"
    fingerprint = compute_fingerprint(lock)
    if PYTHON.exists() and (read(PROFILE), read(STAMP)) == (profile, fingerprint):
        return
    start = time.monotonic()
    report(f"installing {lock.relative_to(ROOT)} into .venv ({profile}); log: .venv/{LOG.name}")
    create_venv(profile)
    try:
        install(lock)
    except PipError as error:
        if not os.environ.get("WHEELHOUSE"):
            raise
        raise SetupError(
            f"{error}\nIf WHEELHOUSE lacks a wheel, fill it again on a machine with a network, the "
            f"same system and Python {dotted(sys.version_info[:2])}: make wheelhouse"
        ) from None
    STAMP.write_text(fingerprint)
    report(f"done in {time.monotonic() - start:.0f} s")


def check_host() -> None:
    """Check that the lock files cover this Python and this system.

    Raises:
        SetupError: Python or the system is not supported.
    """
    if not MIN_PYTHON <= sys.version_info[:2] < MAX_PYTHON:
        raise SetupError(
            f"Python must be {dotted(MIN_PYTHON)} or newer and older than {dotted(MAX_PYTHON)}, "
            f"but {sys.executable} is Python {dotted(sys.version_info[:3])}. Name another one: "
            f"make setup PYTHON=python{dotted(MIN_PYTHON)}"
        )
    if not sys.platform.startswith("linux"):
        raise SetupError(
            f"the system must be Linux, because vLLM needs it, but is {sys.platform}. Use a Linux "
            "container or virtual machine"
        )


def use_wheelhouse() -> None:
    """If WHEELHOUSE is set, configure pip to use that folder and no index.

    Raises:
        SetupError: The folder has no wheels.
    """
    wheelhouse = os.environ.get("WHEELHOUSE")
    if not wheelhouse:
        return
    folder = Path(wheelhouse).expanduser().resolve()
    if not any(folder.glob("*.whl")):
        raise SetupError(
            f"WHEELHOUSE must be a folder of wheels, but {wheelhouse!r} has no wheels. Fill it "
            "with `make wheelhouse` on a machine with a network"
        )
    # Environment variables override pip's configuration files, which may name an index.
    os.environ |= {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(folder),
        "PIP_CONFIG_FILE": os.devnull,
    }
    os.environ.pop("TORCH_INDEX", None)


def find_accelerator() -> str:
    """Return the profile: ACCELERATOR if it is set, `gpu` if nvidia-smi lists a GPU, else `cpu`.

    Raises:
        SetupError: ACCELERATOR is neither cpu nor gpu.
    """
    accelerator = os.environ.get("ACCELERATOR")
    if accelerator and accelerator not in ("cpu", "gpu"):
        raise SetupError(f"ACCELERATOR must be cpu or gpu, got {accelerator!r}")
    if accelerator or not shutil.which("nvidia-smi"):
        return accelerator or "cpu"
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return "gpu" if listing.returncode == 0 and "GPU" in listing.stdout else "cpu"


def compute_fingerprint(lock: Path) -> str:
    """Return a hash of what is installed: the lock and our own packages' metadata."""
    import tomllib  # new in Python 3.11, which check_host has required

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    parts = [project["build-system"], project["project"], project["tool"]["setuptools"]]
    return hashlib.sha256(lock.read_bytes() + json.dumps(parts).encode()).hexdigest()


def create_venv(profile: str) -> None:
    """Create .venv; clear it first if it is for another profile or its Python is missing."""
    clear = not PYTHON.exists() or read(PROFILE) not in (None, profile)
    command = [sys.executable, "-m", "venv", *(["--clear"] if clear else []), str(VENV)]
    if subprocess.run(command, check=False).returncode:
        raise SetupError(
            "Python could not create a virtual environment; its error is above. On Debian and "
            "Ubuntu, install the package python3-venv"
        )
    PROFILE.write_text(profile)
    STAMP.unlink(missing_ok=True)
    remove_incomplete_packages()


def remove_incomplete_packages() -> None:
    """Remove the metadata of packages whose installation was interrupted.

    pip would otherwise consider them installed.
    """
    # pip writes a package's INSTALLER file among the last.
    for package in site_packages().glob("*.dist-info"):
        if not (package / "INSTALLER").exists():
            shutil.rmtree(package)


def install(lock: Path) -> None:
    """Install pip, torch, the rest of the lock, and our own packages in development mode."""
    with hashed([find_entry(lock, "pip")]) as options:
        pip(options, "pip")
    run_pip_for_torch(lock, lambda arguments: pip(arguments, "torch"))
    pip(["--require-hashes", "--requirement", str(lock)], lock.name, len(read_pins(lock)))
    pip(["--no-build-isolation", "--editable", str(ROOT)], "serving and workbench")


def pip(arguments: list[str], name: str, total: int = 1) -> None:
    """Run `pip install` with progress output; run it again if the network may have failed.

    Args:
        arguments: What to install, and pip's options.
        name: What to call it until pip names a package.
        total: Number of packages.

    Raises:
        PipError: pip failed.
    """
    errors = run_pip(arguments, Progress(name, total))
    if errors is None:
        return
    if "No matching distribution" not in errors or "Retrying" in errors:
        report("pip failed; running it again")
        errors = run_pip(arguments, Progress(name, total))
    if errors is not None:
        raise PipError(f"pip failed; its full output is in {LOG}:\n{errors}")


def run_pip(arguments: list[str], progress: Progress) -> str | None:
    """Run `pip install` once; return its last errors, or None if it succeeded."""
    process = subprocess.Popen(
        [*PIP, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )
    ended, lines = threading.Event(), []
    printer = threading.Thread(target=progress.print_until, args=(ended,))
    printer.start()
    try:
        with LOG.open("a") as log:
            for line in process.stdout or ():
                log.write(line)
                lines.append(line)
                progress.read(line)
    finally:
        ended.set()
        printer.join()
    errors = [line for line in lines if line.startswith(("ERROR", "WARNING: Retrying"))] or lines
    return "".join(errors[-5:]).rstrip() if process.wait() else None


class Progress:
    """Progress of one run of pip, which first downloads all packages and then installs them."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.fetched = name, total, 0
        self.to_install: list[str] = []
        self.install_start = 0.0

    def read(self, line: str) -> None:
        """Update the progress from a line of pip's output."""
        fetching = FETCHING.match(line)
        if fetching:
            self.fetched += 1
            file = fetching[1].rpartition("/")[2]
            self.name = "==".join(file.split("-")[:2]) if file.endswith(".whl") else file
        elif line.startswith("Installing collected packages: "):
            # File times come from a coarser clock, which lags by some milliseconds.
            self.install_start = time.time() - 1
            self.to_install = line.split(": ")[1].strip().split(", ")

    def __str__(self) -> str:
        if not self.to_install:
            return f"downloading {min(self.fetched, self.total)}/{self.total}: {self.name}"
        markers = site_packages().glob("*.dist-info/INSTALLER")
        done = sum(modified(marker) >= self.install_start for marker in markers)
        if done >= len(self.to_install):
            return "installing: pip checks the result"
        return f"installing {done + 1}/{len(self.to_install)}: {self.to_install[done]}"

    def print_until(self, ended: threading.Event) -> None:
        """Print the progress every few seconds; pip prints nothing while it installs."""
        start = time.monotonic()
        while not ended.wait(SECONDS_BETWEEN_LINES):
            report(f"{self} ({time.monotonic() - start:.0f} s)")


def site_packages() -> Path:
    """Return the folder of .venv that holds its packages."""
    return VENV / "lib" / f"python{dotted(sys.version_info[:2])}" / "site-packages"


def modified(path: Path) -> float:
    """Return when a file was last written, in seconds since the epoch; 0.0 if it is gone."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def read(path: Path) -> str | None:
    """Return a file's text, or None if the file does not exist."""
    return path.read_text() if path.exists() else None


def dotted(version: tuple[int, ...]) -> str:
    """Return a version such as (3, 11) as text, 3.11."""
    return ".".join(map(str, version))


def report(text: str) -> None:
    """Print a line of progress at once."""
    print(f"setup: {text}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except (SetupError, PipError) as error:
        sys.exit(f"setup: {error}")
    except KeyboardInterrupt:
        sys.exit("setup: interrupted; run `make setup` again to continue")
