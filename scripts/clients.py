"""Install the clients of `make test-clients`, each into an environment of its own.

`requirements/clients/NAME.txt` pins what build/clients/NAME has. An environment is made again only
if its pins have changed. A client that cannot be installed is reported, and its tests are skipped
with the same reason; the others are installed all the same.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from torch_index import PipError, run_pip_for_torch

ROOT = Path(__file__).resolve().parent.parent
PINS = ROOT / "requirements" / "clients"
ENVIRONMENTS = ROOT / "build" / "clients"
UV = ENVIRONMENTS / "uv" / "bin" / "uv"
UV_PIN = "uv==0.13.9"
TORCH_LOCK = ROOT / "requirements" / "cpu.txt"
NEEDS_TORCH = ("guidellm",)
TIMEOUT_S = 600
STAMP, REASON = "installed", "reason.txt"


class InstallError(Exception):
    """A client cannot be installed; the message has the last lines of the tool's output."""


def main() -> None:
    """Install every client whose environment is missing or has other pins."""
    ENVIRONMENTS.mkdir(parents=True, exist_ok=True)
    missing = [name for name in names() if fingerprint(name) != installed(name)]
    if not missing:
        return
    start = time.monotonic()
    failed = [name for name in missing if not try_install(name)]
    done = ", ".join(name for name in missing if name not in failed) or "none"
    report(f"installed in build/clients in {time.monotonic() - start:.0f} s: {done}")
    if failed:
        report(f"not installed: {', '.join(failed)}; their tests are skipped")


def names() -> list[str]:
    """Return the names of the environments."""
    return sorted(path.stem for path in PINS.glob("*.in"))


def fingerprint(name: str) -> str:
    """Return a hash of everything that determines an environment."""
    parts = [sys.version, str(ENVIRONMENTS), (PINS / f"{name}.txt").read_text()]
    if name in NEEDS_TORCH:
        parts += [line for line in TORCH_LOCK.read_text().splitlines() if line[:6] == "torch="]
    if name == "javascript":
        parts.append((PINS / "package.json").read_text())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def installed(name: str) -> str | None:
    """Return the fingerprint of what is installed, or None."""
    stamp = ENVIRONMENTS / name / STAMP
    return stamp.read_text() if stamp.exists() else None


def skip_reason(name: str) -> str | None:
    """Return why the tests of a client cannot run, or None if they can."""
    if installed(name) == fingerprint(name):
        return None
    reason = ENVIRONMENTS / name / REASON
    why = reason.read_text() if reason.exists() else "run `make test-clients`, which installs it"
    return f"requirements/clients/{name}.txt is not installed: {why}"


def try_install(name: str) -> bool:
    """Install a client, and return whether that succeeded."""
    folder = ENVIRONMENTS / name
    shutil.rmtree(folder, ignore_errors=True)
    try:
        install(name, folder)
    except (InstallError, PipError) as error:
        report(f"{name}: {error}")
        folder.mkdir(exist_ok=True)
        (folder / REASON).write_text(str(error).splitlines()[-1])
        return False
    (folder / STAMP).write_text(fingerprint(name))
    return True


def install(name: str, folder: Path) -> None:
    """Install one client.

    Raises:
        InstallError: A download or an installation failed.
        PipError: torch could not be installed.
    """
    if not UV.exists():
        run([sys.executable, "-m", "pip", "install", "--target", str(UV.parents[1]), UV_PIN])
    python = str(folder / "bin" / "python")
    run([str(UV), "venv", "--python", sys.executable, str(folder)])
    pins = str(PINS / f"{name}.txt")
    run(
        [str(UV), "pip", "install", "--no-deps", "--require-hashes", "--python", python, "-r", pins]
    )
    if name in NEEDS_TORCH:
        pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps"]
        run_pip_for_torch(TORCH_LOCK, lambda arguments: run_pip([*pip, *arguments]))
    if name == "javascript":
        shutil.copy(PINS / "package.json", folder)
        npm = [str(folder / "bin" / "npm"), "install", "--no-package-lock", "--no-audit"]
        run([*npm, "--no-fund"], folder)


def run(command: list[str], folder: Path = ROOT) -> None:
    """Run a command.

    Raises:
        InstallError: The command failed, or took longer than TIMEOUT_S.
    """
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    try:
        ended = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | {"PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InstallError(f"{Path(command[0]).name} took longer than {TIMEOUT_S} s") from None
    if ended.returncode:
        raise InstallError("\n".join(ended.stdout.splitlines()[-5:]) or f"{command[0]} failed")


def run_pip(command: list[str]) -> None:
    """Run pip.

    Raises:
        PipError: pip failed.
    """
    try:
        run(command)
    except InstallError as error:
        raise PipError(str(error)) from None


def report(text: str) -> None:
    """Print a line of progress at once."""
    print(f"clients: {text}", flush=True)


if __name__ == "__main__":
    main()
