"""Run pip for torch with an index that offers its CPU build.

vLLM for CPUs needs torch's CPU build, whose version ends in `+cpu`. Most package indexes offer only
the CUDA build. `make setup`, `make wheelhouse`, deploy/Dockerfile and environment.yml follow one
rule:

1. If the environment variable TORCH_INDEX is set, pip uses that index in addition to its own.
2. Otherwise, pip uses its own configuration.
3. If that offers no such build, pip also uses PyTorch's index of CPU wheels, which
   requirements/torch-index.txt names.

The rule applies only to torch: pip queries every index for every package, and an index that cannot
be reached costs several seconds per package.

As a script, it installs the torch of a lock file into the Python that runs it:

    python scripts/torch_index.py requirements/cpu.txt
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INDEX_FILE = ROOT / "requirements" / "torch-index.txt"
HOW_TO_NAME_AN_INDEX = """\
Set TORCH_INDEX to the URL of an index that offers it, for example
    make setup TORCH_INDEX=URL
or download the wheel elsewhere and set PIP_FIND_LINKS to its folder."""


class PipError(Exception):
    """pip failed; the message holds its errors."""


def read_entries(lock: Path) -> list[str]:
    """Return the entries of a lock file: each requirement with the lines of its hashes."""
    text = re.sub(r"^#.*\n", "", lock.read_text(), flags=re.MULTILINE)
    return re.findall(r"^\S(?:.*\\\n)*.*", text, re.MULTILINE)


def pin_of(entry: str) -> str:
    """Return the requirement of an entry, without its hashes."""
    return entry.partition(" \\\n")[0]


def read_pins(lock: Path) -> list[str]:
    """Return the requirements of a lock file, without their hashes."""
    return [pin_of(entry) for entry in read_entries(lock)]


def find_entry(lock: Path, package: str) -> str:
    """Return the entry of a lock file that pins a package."""
    return next(entry for entry in read_entries(lock) if entry.startswith(f"{package}=="))


@contextmanager
def hashed(entries: list[str]) -> Iterator[list[str]]:
    """Yield pip's options that install entries of a lock file and check their hashes.

    pip takes hashes only from a file, so this writes a temporary one.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(entries))
        file.flush()
        yield ["--require-hashes", "--requirement", file.name]


def run_pip_for_torch(lock: Path, run_pip: Callable[[list[str]], None]) -> None:
    """Run pip for the torch that a lock file pins, with an index that offers it.

    Args:
        lock: The lock file.
        run_pip: Runs a pip command with the given options; raises PipError if pip fails.

    Raises:
        PipError: pip failed, or no index offers the build.
    """
    entry = find_entry(lock, "torch")
    with hashed([entry]) as options:
        _run_pip_for_pin(pin_of(entry), lambda more: run_pip([*options, *more]))


def _run_pip_for_pin(pin: str, run_pip: Callable[[list[str]], None]) -> None:
    """Run pip for a pin of torch, with the options that name an index."""
    index = os.environ.get("TORCH_INDEX")
    if index:
        _run_or_explain(
            pin,
            ["--extra-index-url", index],
            run_pip,
            f"{pin} was not found: neither TORCH_INDEX ({index}) nor the indexes that pip is "
            "configured with offer it, or they cannot be reached.\nCheck the URL, or unset "
            "TORCH_INDEX to use PyTorch's index of CPU wheels.",
        )
        return
    try:
        run_pip([])
        return
    except PipError as error:
        if not _is_missing(pin, error) or not _may_use_index_file(pin):
            raise
    print(f"pip's indexes do not offer {pin}; using PyTorch's index of CPU wheels", flush=True)
    _run_or_explain(
        pin,
        ["--requirement", str(INDEX_FILE)],
        run_pip,
        f"{pin} was not found: the indexes that pip is configured with do not offer it, and "
        f"PyTorch's index of CPU wheels (requirements/{INDEX_FILE.name}) does not either or cannot "
        f"be reached.\n{HOW_TO_NAME_AN_INDEX}",
    )


def _run_or_explain(
    pin: str, options: list[str], run_pip: Callable[[list[str]], None], explanation: str
) -> None:
    """Run pip; if it finds no such version, add an explanation to its errors."""
    try:
        run_pip(options)
    except PipError as error:
        if not _is_missing(pin, error):
            raise
        raise PipError(f"{error}\n{explanation}") from None


def _is_missing(pin: str, error: PipError) -> bool:
    """Return whether pip failed because no index offers the version."""
    return f"No matching distribution found for {pin}" in str(error)


def _may_use_index_file(pin: str) -> bool:
    """Return whether PyTorch's index of CPU wheels may be used: for a CPU build, with a network."""
    # `torch==2.13.0` also matches `2.13.0+cpu`: a GPU environment must not get the CPU build.
    return "+cpu" in pin and "PIP_NO_INDEX" not in os.environ


def run_pip(command: list[str]) -> None:
    """Run a pip command with the running Python and show its output.

    Raises:
        PipError: pip failed.
    """
    arguments = [sys.executable, "-m", "pip", *command]
    errors = []
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr or ():
            if line.startswith("ERROR"):
                errors.append(line)
            else:
                print(line, end="", file=sys.stderr, flush=True)
    if process.returncode:
        raise PipError("".join(errors).rstrip() or "pip failed; its output is above")


def main() -> None:
    """Install the torch of the lock file that the command line names."""
    lock = Path(sys.argv[1])
    run_pip_for_torch(lock, lambda arguments: run_pip(["install", "--no-deps", *arguments]))


if __name__ == "__main__":
    try:
        main()
    except PipError as error:
        sys.exit(str(error))
