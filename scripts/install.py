"""Make .venv and install the pinned environment into it, saying all along how far it is.

`make setup` calls it. Standard library only: nothing else is there yet. A call with nothing to do
ends at once; one after a failure or an interruption goes on where that one stopped.
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

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = VENV / "install.log"
# What .venv is made for, written first, and the hash of what was installed, written last.
PROFILE = VENV / "profile"
STAMP = VENV / "installed"
OLDEST, TOO_NEW = (3, 11), (3, 14)
SECONDS_BETWEEN_LINES = 3.0
PIP = [str(PYTHON), "-m", "pip", "install", "--no-deps", "--no-input", "--progress-bar", "off"]
# How pip's lines begin when it takes up a package, then the package's name or file.
FETCHING = re.compile(
    r"(?:Collecting|Processing|Requirement already satisfied:|Ignoring) ([^\s;:]+)"
)
NO_CPU_TORCH = """\
If the index that pip uses has no such build of torch, give PyTorch's own index of CPU wheels,
which its install page shows for Linux, Pip and CPU:
    make setup TORCH_INDEX=URL"""


class SetupError(Exception):
    """The environment cannot be made; the message says why and what to do."""


def main() -> None:
    """Bring .venv to what the lock file says; do nothing where it is there already."""
    check_host()
    use_wheelhouse()
    accelerator = find_accelerator()
    lock = ROOT / "requirements" / f"{accelerator}.txt"
    profile = f"{accelerator}, Python {dotted(sys.version_info[:2])}"
    wanted = fingerprint(lock)
    if PYTHON.exists() and (read(PROFILE), read(STAMP)) == (profile, wanted):
        return
    start = time.monotonic()
    say(f"making .venv ({profile}) from {lock.relative_to(ROOT)}; details in .venv/{LOG.name}")
    make_venv(profile)
    install(lock)
    STAMP.write_text(wanted)
    say(f"done in {time.monotonic() - start:.0f} s")


def check_host() -> None:
    """Refuse a Python or a system that the lock files do not cover."""
    if not OLDEST <= sys.version_info[:2] < TOO_NEW:
        raise SetupError(
            f"{sys.executable} is Python {dotted(sys.version_info[:3])}, and this needs "
            f"{dotted(OLDEST)} or newer, below {dotted(TOO_NEW)}: name one that fits, "
            f"as in `make setup PYTHON=python{dotted(OLDEST)}`"
        )
    if not sys.platform.startswith("linux"):
        raise SetupError(f"vLLM runs on Linux, and this is {sys.platform}: use a Linux container")


def use_wheelhouse() -> None:
    """With the variable WHEELHOUSE, take every package from that folder and ask no index."""
    given = os.environ.get("WHEELHOUSE")
    if not given:
        return
    folder = Path(given).expanduser().resolve()
    if not any(folder.glob("*.whl")):
        raise SetupError(
            f"WHEELHOUSE is {given!r}, which has no wheels: fill it with `make wheelhouse` where "
            "there is a network"
        )
    # pip reads its options from the environment too; a configured index must not be asked.
    os.environ |= {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(folder),
        "PIP_CONFIG_FILE": os.devnull,
    }
    os.environ.pop("TORCH_INDEX", None)


def find_accelerator() -> str:
    """`gpu` where nvidia-smi lists one, else `cpu`; the variable ACCELERATOR overrides it."""
    given = os.environ.get("ACCELERATOR")
    if given and given not in ("cpu", "gpu"):
        raise SetupError(f"ACCELERATOR is {given!r}; it takes cpu or gpu")
    if given or not shutil.which("nvidia-smi"):
        return given or "cpu"
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return "gpu" if listing.returncode == 0 and "GPU" in listing.stdout else "cpu"


def fingerprint(lock: Path) -> str:
    """A hash of all that is installed: the lock, and what pyproject.toml says of our packages."""
    import tomllib  # there from Python 3.11 on, which check_host has seen to

    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())
    parts = [ours["build-system"], ours["project"], ours["tool"]["setuptools"]]
    return hashlib.sha256(lock.read_bytes() + json.dumps(parts).encode()).hexdigest()


def make_venv(profile: str) -> None:
    """Make .venv, from nothing if it was made for another profile or its Python is gone."""
    fresh = not PYTHON.exists() or read(PROFILE) not in (None, profile)
    command = [sys.executable, "-m", "venv", *(["--clear"] if fresh else []), str(VENV)]
    if subprocess.run(command, check=False).returncode:
        raise SetupError("Python could not make a virtual environment; its own words stand above")
    PROFILE.write_text(profile)
    STAMP.unlink(missing_ok=True)
    forget_cut_off_packages()


def forget_cut_off_packages() -> None:
    """Let pip install anew what an interruption cut off; it would call it installed."""
    # INSTALLER is among the last files that pip writes of a package.
    for package in site_packages().glob("*.dist-info"):
        if not (package / "INSTALLER").exists():
            shutil.rmtree(package)


def install(lock: Path) -> None:
    """Install pip, torch, the rest of the lock, and our own packages in development mode."""
    pins = [line for line in lock.read_text().splitlines() if line and not line.startswith("#")]
    torch = next(pin for pin in pins if pin.startswith("torch=="))
    pip([next(pin for pin in pins if pin.startswith("pip=="))], "pip")
    # For torch alone: an index that cannot be reached costs seconds for every package asked of it.
    index = os.environ.get("TORCH_INDEX")
    try:
        pip([torch, *(["--extra-index-url", index] if index else [])], "torch")
    except SetupError as error:
        raise SetupError(f"{error}\n{NO_CPU_TORCH}" if "+cpu" in torch else error) from None
    pip(["-r", str(lock)], lock.name, len(pins))
    pip(["--no-build-isolation", "--editable", str(ROOT)], "serving and workbench")


def pip(arguments: list[str], what: str, total: int = 1) -> None:
    """Run pip with progress, and once more if it fails: the network may have."""
    if run_pip(arguments, Progress(what, total)) is None:
        return
    say("pip failed; trying once more")
    errors = run_pip(arguments, Progress(what, total))
    if errors is not None:
        raise SetupError(f"pip failed; all it said is in {LOG}:\n{errors}")


def run_pip(arguments: list[str], progress: Progress) -> str | None:
    """Run pip once; its last errors, or None if it succeeded."""
    pip = subprocess.Popen(
        [*PIP, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )
    ended, lines = threading.Event(), []
    teller = threading.Thread(target=progress.tell_until, args=(ended,))
    teller.start()
    try:
        with LOG.open("a") as log:
            for line in pip.stdout or ():
                log.write(line)
                lines.append(line)
                progress.read(line)
    finally:
        ended.set()
        teller.join()
    errors = [line for line in lines if line.startswith(("ERROR", "WARNING: Retrying"))] or lines
    return "".join(errors[-5:]).rstrip() if pip.wait() else None


class Progress:
    """How far one run of pip is: first it fetches every package, then it installs them."""

    def __init__(self, what: str, total: int) -> None:
        self.name, self.total, self.fetched = what, total, 0
        self.to_install: list[str] = []
        self.installs_since = 0.0

    def read(self, line: str) -> None:
        """Take in one line of pip's output."""
        fetching = FETCHING.match(line)
        if fetching:
            self.fetched += 1
            file = fetching[1].rpartition("/")[2]
            self.name = "==".join(file.split("-")[:2]) if file.endswith(".whl") else file
        elif line.startswith("Installing collected packages: "):
            # A file's time comes from a coarser clock, which lags by some milliseconds.
            self.installs_since = time.time() - 1
            self.to_install = line.split(": ")[1].strip().split(", ")

    def __str__(self) -> str:
        if not self.to_install:
            return f"fetching {min(self.fetched, self.total)}/{self.total}: {self.name}"
        markers = site_packages().glob("*.dist-info/INSTALLER")
        done = sum(changed(marker) >= self.installs_since for marker in markers)
        if done >= len(self.to_install):
            return "installing: pip looks over what it did"
        return f"installing {done + 1}/{len(self.to_install)}: {self.to_install[done]}"

    def tell_until(self, ended: threading.Event) -> None:
        """Print a line every few seconds; pip itself is silent while it installs."""
        start = time.monotonic()
        while not ended.wait(SECONDS_BETWEEN_LINES):
            say(f"{self} ({time.monotonic() - start:.0f} s)")


def site_packages() -> Path:
    """Where .venv keeps its packages."""
    return VENV / "lib" / f"python{dotted(sys.version_info[:2])}" / "site-packages"


def changed(path: Path) -> float:
    """When a file was last written; 0.0 if it went away meanwhile."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def read(path: Path) -> str | None:
    """A file's text, None where there is no such file."""
    return path.read_text() if path.exists() else None


def dotted(version: tuple[int, ...]) -> str:
    """(3, 11) as 3.11."""
    return ".".join(map(str, version))


def say(text: str) -> None:
    """One line of progress, at once."""
    print(f"setup: {text}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except SetupError as error:
        sys.exit(f"setup: {error}")
    except KeyboardInterrupt:
        sys.exit("setup: interrupted; `make setup` goes on from here")
