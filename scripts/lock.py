"""Write the lock files; `make lock` runs it.

requirements/cpu.txt and requirements/gpu.txt come from pyproject.toml, and those of the clients and
of tools from a file NAME.in beside each. A version that a file pins is kept if its source allows
it, so two runs write the same files. `--upgrade` takes the newest versions instead.

Each pin has the SHA-256 of every file that the index offers for its version. The hashes of torch's
CPU build come from PyTorch's index. If that cannot be reached, the lock keeps those it has, or, for
another version, the script ends with an error.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import urllib.request
from itertools import product
from pathlib import Path

from packaging.markers import Marker
from torch_index import INDEX_FILE, find_entry, pin_of, read_entries

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
PYTHONS = ("3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")
# One version of a package for all Pythons, so that a run on one can be repeated on another.
COMPILE = ["uv", "pip", "compile", "--universal", "--fork-strategy", "fewest"]
COMPILE += ["--python-version", PYTHONS[0]]
COMPILE += ["--no-header", "--no-annotate", "--quiet", "--generate-hashes"]
OVERRIDES = ["--overrides", "requirements/cpu-override.txt"]
COMMON = ["--excludes", "requirements/exclude.txt"]
EXCLUDES = [*COMMON, "--excludes", "requirements/cpu-exclude.txt"]
PROJECT = ["pyproject.toml", "--extra", "dev"]
OPTIONS = {
    "cpu": [*PROJECT, "--extra", "cpu", *OVERRIDES, *EXCLUDES],
    "gpu": [*PROJECT, "--extra", "gpu", *COMMON],
}
CLIENT_EXCLUDES = ["--excludes", "requirements/clients/exclude.txt"]
TOOLS = {"audit": "pip-audit", "docs": "MkDocs"}
TOOL_HEADER = """\
# {content}, which `make {target}` installs.
# Written by `make lock` from requirements/{name}.in.
"""
HEADER = """\
# The pinned environment of the {profile} profile, for Linux and Python {first} to {last}.
# Written by `make lock` from pyproject.toml (extras {profile} and dev); see requirements/README.md.
# Install it with: pip install --no-deps --require-hashes -r requirements/{profile}.txt
"""
HASH = " \\\n    --hash=sha256:"
TORCH_WHEEL = re.compile(r">torch-([\w.+]+)-cp(\d+)-cp\2-manylinux[\w.]*_(x86_64|aarch64)\.whl<")
INDEX_TIMEOUT_S = 30.0


class LockError(Exception):
    """A lock file cannot be written; the message states the reason and the fix."""


def compile_lock(options: list[str], preferred: list[str]) -> list[str]:
    """Resolve one lock file.

    Args:
        options: What to resolve, as arguments of uv.
        preferred: Pins to keep where they fit.

    Returns:
        The entries of the lock file: each pin with its hashes.
    """
    with tempfile.NamedTemporaryFile("w+", suffix=".txt") as output:
        output.write("\n".join(preferred))
        output.flush()
        command = [*COMPILE, *options, "--output-file", output.name]
        subprocess.run(command, cwd=ROOT, check=True)
        entries = read_entries(Path(output.name))
    return [simplify(entry) for entry in entries if scope(pin_of(entry)) != "nowhere"]


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


def simplify(entry: str) -> str:
    """Return an entry with the shortest equivalent marker for the supported targets."""
    pin, *hashes = entry.split(HASH)
    marker = scope(pin)
    name = pin.partition(" ; ")[0]
    return HASH.join([name if marker == "everywhere" else f"{name} ; {marker}", *hashes])


def read_pins(name: str) -> list[str]:
    """Return what a lock file pins, in the form that uv resolves (torch without its +cpu)."""
    path = REQUIREMENTS / f"{name}.txt"
    entries = read_entries(path) if path.exists() else []
    return [pin_of(entry).replace("+cpu", "") for entry in entries]


def use_cpu_build(entries: list[str]) -> list[str]:
    """Return the entries with torch's CPU build, which has a version and files of its own."""
    return [
        lock_cpu_build(f"{pin_of(entry)}+cpu") if entry.startswith("torch==") else entry
        for entry in entries
    ]


def lock_cpu_build(pin: str) -> str:
    """Return the entry for a pin of torch's CPU build, such as `torch==2.13.0+cpu`.

    Raises:
        LockError: PyTorch's index has no such wheels or cannot be reached, and the lock has no
            hashes for this version yet.
    """
    (index,) = re.findall(r"https://\S+", INDEX_FILE.read_text())
    try:
        with urllib.request.urlopen(f"{index}/torch/", timeout=INDEX_TIMEOUT_S) as page:
            hashes = find_hashes(page.read().decode(), pin.partition("==")[2])
    except OSError as error:
        return keep_cpu_build(pin, f"{index} cannot be reached ({error})")
    if not hashes:
        return keep_cpu_build(pin, f"{index} has no wheel of {pin}")
    return HASH.join([pin, *hashes])


def find_hashes(page: str, version: str) -> list[str]:
    """Return the hashes of torch's wheels on its page (PEP 503) for the supported targets."""
    pythons = {python.replace(".", "") for python in PYTHONS}
    hashes = []
    for link in re.findall(r"<a .*?</a>", page, re.DOTALL):
        wheel, digest = TORCH_WHEEL.search(link), re.search(r"#sha256=(\w{64})", link)
        if wheel and digest and wheel[1] == version and wheel[2] in pythons:
            hashes.append(digest[1])
    return sorted(hashes)


def keep_cpu_build(pin: str, reason: str) -> str:
    """Return the entry that the CPU lock has for a pin.

    Raises:
        LockError: The CPU lock has no hashes for the pin.
    """
    entry = find_entry(REQUIREMENTS / "cpu.txt", "torch")
    if pin_of(entry) == pin and HASH in entry:
        print(f"{reason}; the lock keeps the hashes that it has for {pin}")
        return entry
    raise LockError(
        f"no hashes for {pin}: {reason}, and requirements/cpu.txt has none. Run `make lock` where "
        "this index can be reached"
    )


def write(name: str, header: str, entries: list[str]) -> None:
    """Write one lock file with its header."""
    (REQUIREMENTS / f"{name}.txt").write_text(header + "\n".join(entries) + "\n")
    print(f"requirements/{name}.txt: {len(entries)} packages")


def write_profile(profile: str, entries: list[str]) -> None:
    """Write the lock file of a profile."""
    write(profile, HEADER.format(profile=profile, first=PYTHONS[0], last=PYTHONS[-1]), entries)


def write_client(source: Path, keep: bool) -> None:
    """Resolve and write the lock file of a client."""
    name = f"clients/{source.stem}"
    options = [str(source.relative_to(ROOT)), *CLIENT_EXCLUDES]
    entries = compile_lock(options, read_pins(name) if keep else [])
    content = "The pinned environment of a client"
    write(name, TOOL_HEADER.format(content=content, target="test-clients", name=name), entries)


def write_tool(name: str, content: str, keep: bool) -> None:
    """Resolve and write the lock file of a tool that `make NAME` installs for itself."""
    entries = compile_lock([f"requirements/{name}.in"], read_pins(name) if keep else [])
    header = TOOL_HEADER.format(
        content=f"The pinned environment of {content}", target=name, name=name
    )
    write(name, header, entries)


def main() -> None:
    """Write all lock files; the GPU lock takes the CPU lock's versions where it can."""
    keep = "--upgrade" not in sys.argv
    for source in sorted((REQUIREMENTS / "clients").glob("*.in")):
        write_client(source, keep)
    for name, content in TOOLS.items():
        write_tool(name, content, keep)
    cpu = compile_lock(OPTIONS["cpu"], read_pins("cpu") if keep else [])
    pins = [pin_of(entry) for entry in cpu]
    shared = {pin.partition("==")[0] for pin in pins}
    own = [pin for pin in read_pins("gpu") if keep and pin.partition("==")[0] not in shared]
    gpu = compile_lock(OPTIONS["gpu"], pins + own)
    write_profile("cpu", use_cpu_build(cpu))
    write_profile("gpu", gpu)


if __name__ == "__main__":
    try:
        main()
    except LockError as error:
        sys.exit(f"lock: {error}")
