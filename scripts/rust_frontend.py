"""Take vLLM's Rust front end out of vLLM's wheel for CUDA, for an installation of the CPU build.

It is kept in the user's cache folder, where `ModelSpec(frontend="rust")` finds it.
"""

from __future__ import annotations

import platform
import sys
import tempfile
import zipfile
from pathlib import Path

from torch_index import PipError, run_pip

from serving.compat.vllm_rust import PROGRAM, cached_program, vllm_version


def download(version: str, folder: Path) -> Path:
    """Download the wheel of a version for this machine, and return its path."""
    options = ["--no-deps", "--only-binary=:all:", "--quiet", "--progress-bar", "off"]
    target = ["--platform", f"manylinux_2_28_{platform.machine()}", "--dest", str(folder)]
    run_pip(["download", *options, *target, f"vllm=={version}"])
    (wheel,) = folder.glob("*.whl")
    return wheel


def extract(wheel: Path, program: Path) -> None:
    """Write the program of a wheel to a file, which appears when it is whole."""
    program.parent.mkdir(parents=True, exist_ok=True)
    part = program.with_suffix(".part")
    with zipfile.ZipFile(wheel) as files:
        part.write_bytes(files.read(f"vllm/{PROGRAM}"))
    part.chmod(0o755)
    part.replace(program)


def main() -> None:
    """Extract the program of the installed vLLM's version, unless it is there."""
    version = vllm_version()
    program = cached_program(version)
    if not program.exists():
        with tempfile.TemporaryDirectory() as folder:
            extract(download(version, Path(folder)), program)
    print(program)


if __name__ == "__main__":
    try:
        main()
    except PipError as error:
        sys.exit(f"rust_frontend: {error}")
