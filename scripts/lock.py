"""Write the lock files; `make lock` runs it.

requirements/cpu.txt and requirements/gpu.txt come from pyproject.toml, and those of the clients
from requirements/clients/NAME.in. A version that a file pins is kept if its source allows it, so
two runs write the same files. `--upgrade` takes the newest versions instead.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

from packaging.markers import Marker

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
PYTHONS = ("3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")
# One version of a package for all Pythons, so that a run on one can be repeated on another.
COMPILE = ["uv", "pip", "compile", "--universal", "--fork-strategy", "fewest"]
COMPILE += ["--python-version", PYTHONS[0]]
COMPILE += ["--no-header", "--no-annotate", "--quiet"]
OVERRIDES = ["--overrides", "requirements/cpu-override.txt"]
COMMON = ["--excludes", "requirements/exclude.txt"]
EXCLUDES = [*COMMON, "--excludes", "requirements/cpu-exclude.txt"]
PROJECT = ["pyproject.toml", "--extra", "dev"]
OPTIONS = {
    "cpu": [*PROJECT, "--extra", "cpu", *OVERRIDES, *EXCLUDES],
    "gpu": [*PROJECT, "--extra", "gpu", *COMMON],
}
CLIENT_EXCLUDES = ["--excludes", "requirements/clients/exclude.txt"]
CLIENT_HEADER = """\
# The pinned environment of a client, which `make test-clients` installs.
# Written by `make lock` from requirements/clients/{name}.in.
"""
HEADER = """\
# The pinned environment of the {profile} profile, for Linux and Python {first} to {last}.
# Written by `make lock` from pyproject.toml (extras {profile} and dev); see requirements/README.md.
# Install it with: pip install --no-deps -r requirements/{profile}.txt
"""


def compile_lock(options: list[str], preferred: list[str]) -> list[str]:
    """Resolve one lock file.

    Args:
        options: What to resolve, as arguments of uv.
        preferred: Pins to keep where they fit.

    Returns:
        The lines of the lock file, without its header.
    """
    with tempfile.NamedTemporaryFile("w+", suffix=".txt") as output:
        output.write("\n".join(preferred))
        output.flush()
        command = [*COMPILE, *options, "--output-file", output.name]
        subprocess.run(command, cwd=ROOT, check=True)
        lines = Path(output.name).read_text().splitlines()
    return [simplify(line) for line in lines if line and scope(line) != "nowhere"]


def scope(line: str) -> str:
    """Return where a line applies: `everywhere`, `nowhere`, or the shortest marker for it."""
    marker = line.partition(" ; ")[2]
    if not marker:
        return "everywhere"
    applies = {target: evaluate(marker, *target) for target in product(PYTHONS, MACHINES)}
    if len(set(applies.values())) == 1:
        return "everywhere" if all(applies.values()) else "nowhere"
    for candidate in short_markers():
        if all(evaluate(candidate, *target) is value for target, value in applies.items()):
            return candidate
    return marker


def short_markers() -> list[str]:
    """Return markers that name only a Python version or only a machine."""
    versions = [f"python_version {sign} '{v}'" for sign in ("<", ">=") for v in PYTHONS[1:]]
    return versions + [f"platform_machine == '{machine}'" for machine in MACHINES]


def evaluate(marker: str, python: str, machine: str) -> bool:
    """Return whether a marker applies to CPython on Linux, for a Python version and a machine."""
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    environment |= {"platform_machine": machine, "sys_platform": "linux"}
    environment |= {"platform_system": "Linux", "os_name": "posix"}
    environment |= {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
    return Marker(marker).evaluate(environment)


def simplify(line: str) -> str:
    """Return `name==version` with the shortest equivalent marker for the supported targets."""
    pin, marker = line.partition(" ; ")[0], scope(line)
    return pin if marker == "everywhere" else f"{pin} ; {marker}"


def read_pins(name: str) -> list[str]:
    """Return what a lock file pins, in the form that uv resolves (torch without its +cpu)."""
    path = REQUIREMENTS / f"{name}.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.replace("+cpu", "") for line in lines if not line.startswith("#")]


def write(name: str, header: str, lines: list[str]) -> None:
    """Write one lock file with its header."""
    (REQUIREMENTS / f"{name}.txt").write_text(header + "\n".join(lines) + "\n")
    print(f"requirements/{name}.txt: {len(lines)} packages")


def write_profile(profile: str, lines: list[str]) -> None:
    """Write the lock file of a profile."""
    write(profile, HEADER.format(profile=profile, first=PYTHONS[0], last=PYTHONS[-1]), lines)


def write_client(source: Path, keep: bool) -> None:
    """Resolve and write the lock file of a client."""
    name = f"clients/{source.stem}"
    options = [str(source.relative_to(ROOT)), *CLIENT_EXCLUDES]
    lines = compile_lock(options, read_pins(name) if keep else [])
    write(name, CLIENT_HEADER.format(name=source.stem), lines)


def main() -> None:
    """Write all lock files; the GPU lock takes the CPU lock's versions where it can."""
    keep = "--upgrade" not in sys.argv
    for source in sorted((REQUIREMENTS / "clients").glob("*.in")):
        write_client(source, keep)
    cpu = compile_lock(OPTIONS["cpu"], read_pins("cpu") if keep else [])
    shared = {line.partition("==")[0] for line in cpu}
    own = [line for line in read_pins("gpu") if keep and line.partition("==")[0] not in shared]
    gpu = compile_lock(OPTIONS["gpu"], cpu + own)
    write_profile("cpu", [re.sub(r"^(torch==[\d.]+)$", r"\1+cpu", line) for line in cpu])
    write_profile("gpu", gpu)


if __name__ == "__main__":
    main()
