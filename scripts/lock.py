"""Write requirements/cpu.txt and requirements/gpu.txt from pyproject.toml; `make lock` calls it.

A version that either file already pins is kept as long as pyproject.toml allows it, so that two
runs write the same files; `--upgrade` takes the newest ones.
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
# One version of a package for every Python, so that a run on one can be repeated on another.
COMPILE = ["uv", "pip", "compile", "pyproject.toml", "--universal", "--fork-strategy", "fewest"]
COMPILE += ["--extra", "dev", "--python-version", PYTHONS[0]]
COMPILE += ["--no-header", "--no-annotate", "--quiet"]
OVERRIDES = ["--overrides", "requirements/cpu-override.txt"]
COMMON = ["--excludes", "requirements/exclude.txt"]
EXCLUDES = [*COMMON, "--excludes", "requirements/cpu-exclude.txt"]
OPTIONS = {"cpu": ["--extra", "cpu", *OVERRIDES, *EXCLUDES], "gpu": ["--extra", "gpu", *COMMON]}
HEADER = """\
# The exact environment of the {profile} profile: Linux, Python {first} to {last}.
# Made by `make lock` from pyproject.toml (extras {profile}, dev); requirements/README.md says how.
# Install it with: pip install --no-deps -r requirements/{profile}.txt
"""


def compile_lock(profile: str, known: list[str]) -> list[str]:
    """The lines of one profile's lock; the pins in `known` are preferred where they fit."""
    with tempfile.NamedTemporaryFile("w+", suffix=".txt") as output:
        output.write("\n".join(known))
        output.flush()
        command = [*COMPILE, *OPTIONS[profile], "--output-file", output.name]
        subprocess.run(command, cwd=ROOT, check=True)
        lines = Path(output.name).read_text().splitlines()
    return [simplify(line) for line in lines if line and holds(line) != "nowhere"]


def holds(line: str) -> str:
    """Where a line's marker holds: everywhere, nowhere, or the marker that says where, shortest."""
    marker = line.partition(" ; ")[2]
    if not marker:
        return "everywhere"
    places = {place: evaluate(marker, *place) for place in product(PYTHONS, MACHINES)}
    if len(set(places.values())) == 1:
        return "everywhere" if all(places.values()) else "nowhere"
    for candidate in short_markers():
        if all(evaluate(candidate, *place) is value for place, value in places.items()):
            return candidate
    return marker


def short_markers() -> list[str]:
    """Markers that speak of the Python version alone, or of the machine alone."""
    versions = [f"python_version {sign} '{v}'" for sign in ("<", ">=") for v in PYTHONS[1:]]
    return versions + [f"platform_machine == '{machine}'" for machine in MACHINES]


def evaluate(marker: str, python: str, machine: str) -> bool:
    """Whether a marker holds under CPython on Linux, for one Python version and machine."""
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    environment |= {"platform_machine": machine, "sys_platform": "linux"}
    environment |= {"platform_system": "Linux", "os_name": "posix"}
    environment |= {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
    return Marker(marker).evaluate(environment)


def simplify(line: str) -> str:
    """`name==version`, with the shortest marker that says the same on the places we support."""
    pin, where = line.partition(" ; ")[0], holds(line)
    return pin if where == "everywhere" else f"{pin} ; {where}"


def pins(profile: str) -> list[str]:
    """What a lock pins today, in the form that uv resolves (torch without its +cpu)."""
    path = REQUIREMENTS / f"{profile}.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.replace("+cpu", "") for line in lines if not line.startswith("#")]


def write(profile: str, lines: list[str]) -> None:
    """Write one lock file under its header."""
    header = HEADER.format(profile=profile, first=PYTHONS[0], last=PYTHONS[-1])
    (REQUIREMENTS / f"{profile}.txt").write_text(header + "\n".join(lines) + "\n")
    print(f"requirements/{profile}.txt: {len(lines)} packages")


def main() -> None:
    """Write both locks; the GPU's takes the CPU's versions wherever it can."""
    keep = "--upgrade" not in sys.argv
    cpu = compile_lock("cpu", pins("cpu") if keep else [])
    shared = {line.partition("==")[0] for line in cpu}
    own = [line for line in pins("gpu") if keep and line.partition("==")[0] not in shared]
    gpu = compile_lock("gpu", cpu + own)
    write("cpu", [re.sub(r"^(torch==[\d.]+)$", r"\1+cpu", line) for line in cpu])
    write("gpu", gpu)


if __name__ == "__main__":
    main()
