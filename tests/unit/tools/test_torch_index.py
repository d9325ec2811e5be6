"""Which index torch's CPU build comes from, for each way to install the environment.

Local indexes replace the one that pip is configured with and for PyTorch's index of CPU
wheels. Their logs show what pip requested from them.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml
from support.paths import ROOT
from support.scripts import load

pytestmark = pytest.mark.slow

INSTALL = load("install")
TORCH_INDEX = load("torch_index")
PACKAGES = ("attrs-26.1.0", "pip-26.3", "torch-2.13.0+cpu")
BACKEND = """
import shutil

def build_editable(folder, settings=None, metadata=None):
    return shutil.copy("project-1-py3-none-any.whl", folder).rpartition("/")[2]
"""
CLOSED_PORT = "http://127.0.0.1:9/"  # the discard service, which nothing runs


class Index:
    """A package index on loopback (PEP 503) that logs the packages requested from it."""

    def __init__(self, folder: Path, *wheels: str) -> None:
        self.folder, self.requested = folder, list[str]()
        for wheel in wheels:
            write_wheel(folder / wheel.partition("-")[0] / wheel)
        handler = partial(Handler, self.requested, directory=str(folder))
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        self.thread = Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


class Handler(SimpleHTTPRequestHandler):
    """Serve a folder, whose listings are pages of links, and log the first part of each path."""

    def __init__(self, requested: list[str], *arguments: object, **options: str) -> None:
        self.requested = requested
        super().__init__(*arguments, **options)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self.requested.append(self.path.split("/")[1])
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


def write_wheel(path: Path, summary: str = "") -> None:
    """Write a wheel that holds its metadata only; the same arguments yield the same bytes."""
    name, version = path.name.split("-")[:2]
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: {summary}\n"
    files = {
        "METADATA": metadata,
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in files.items():  # a ZipInfo has a fixed date
            wheel.writestr(zipfile.ZipInfo(f"{name}-{version}.dist-info/{file}"), text)


def write_lock(path: Path, *packages: str) -> None:
    """Write a lock file with the hashes of the wheels that an index of these tests has."""
    entries = ["# A lock"]
    for package in packages:
        wheel = path.parent / "wheels" / f"{package}-py3-none-any.whl"
        write_wheel(wheel)
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        entries.append(f"{package.replace('-', '==')} \\\n    --hash=sha256:{digest}")
    path.write_text("\n".join(entries) + "\n")


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Index]]:
    """Start an index with the named wheels."""
    indexes: list[Index] = []

    def start(*wheels: str) -> Index:
        folder = tmp_path / f"index{len(indexes)}"
        folder.mkdir()
        indexes.append(Index(folder, *(f"{wheel}-py3-none-any.whl" for wheel in wheels)))
        return indexes[-1]

    yield start
    for index in indexes:
        index.close()


@pytest.fixture
def pytorch(serve: Callable[..., Index]) -> Index:
    """The index that stands in for PyTorch's; it has other packages too, as PyTorch's does."""
    return serve("torch-2.13.0+cpu", "attrs-26.1.0", "pip-26.3")


@pytest.fixture
def without_build(serve: Callable[..., Index]) -> Index:
    """An index like most: torch's CUDA build, but no CPU build."""
    return serve("torch-2.13.0", "attrs-26.1.0", "pip-26.3")


@pytest.fixture
def with_build(serve: Callable[..., Index]) -> Index:
    """An index with torch's CPU build."""
    return serve("torch-2.13.0+cpu", "attrs-26.1.0", "pip-26.3")


class Project:
    """A copy of the installation files, with a small lock and a local index for PyTorch's.

    Its own package has no modules, and a build backend that needs no other package.
    """

    def __init__(self, root: Path, pytorch_url: str) -> None:
        self.root, self.target = root, root / "target"
        sources = shutil.ignore_patterns("__pycache__")  # Other tests write there meanwhile.
        for folder in ("scripts", "requirements"):
            shutil.copytree(ROOT / folder, root / folder, ignore=sources)
        write_lock(root / "requirements" / "cpu.txt", *PACKAGES)
        write_wheel(root / "project-1-py3-none-any.whl")
        (root / "backend.py").write_text(BACKEND)
        (root / "pyproject.toml").write_text(
            '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        )
        (root / "requirements" / "torch-index.txt").write_text(f"--extra-index-url {pytorch_url}\n")
        venv.create(self.target, with_pip=False)

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return subprocess.run(
            command,
            cwd=self.root,
            env={**os.environ, "PATH": path, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def installed(self) -> set[str]:
        """The names and versions of what was installed or downloaded, less pip and our own.

        conda's environment has a pip of its own.
        """
        files = [*self.target.rglob("*.dist-info"), *self.target.glob("*.whl")]
        names = {re.sub(r"(-py3-none-any.whl|\.dist-info)$", "", file.name) for file in files}
        return {name for name in names if name.startswith(("torch", "attrs"))}


def make_setup(project: Project) -> subprocess.CompletedProcess[str]:
    """Install the lock as scripts/install.py does, but not our own packages."""
    code = """
import install, pathlib, sys
install.LOG = pathlib.Path("log")
install.PIP = [sys.executable, *install.PIP[1:]]
pip = install.pip
install.pip = lambda arguments, *rest: "--editable" in arguments or pip(arguments, *rest)
try:
    install.install(pathlib.Path("requirements/cpu.txt").resolve())
except install.PipError as error:
    sys.exit(str(error))
"""
    environment = {"PYTHONPATH": "scripts", "PIP_PYTHON": "target/bin/python"}
    return project.run(sys.executable, "-c", code, **environment)


def make_wheelhouse(project: Project) -> subprocess.CompletedProcess[str]:
    """Run `make wheelhouse`."""
    environment = {"WHEELHOUSE": "target", "ACCELERATOR": "cpu"}
    return project.run(sys.executable, "scripts/wheelhouse.py", **environment)


def docker_build(project: Project) -> subprocess.CompletedProcess[str]:
    """Run the command of deploy/Dockerfile that installs the lock."""
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text().replace("\\\n", "")
    (command,) = [c for c in re.findall("^RUN (.*)", dockerfile, re.M) if "requirements" in c]
    return project.run("sh", "-c", command, ACCELERATOR="cpu", PIP_PYTHON="target/bin/python")


@cache
def environment_with_pip() -> Path:
    """A virtual environment to copy: to install pip takes seconds."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    venv.create(folder, with_pip=True)
    return folder


def conda_create(project: Project) -> subprocess.CompletedProcess[str]:
    """Run pip as conda does for environment.yml."""
    shutil.rmtree(project.target)
    shutil.copytree(environment_with_pip(), project.target, symlinks=True)
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (lines,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    file = project.root / "condaenv.0.requirements.txt"
    file.write_text("\n".join(lines))
    pip = ["target/bin/python", "-m", "pip", "install", "-U", "-r", str(file), "--exists-action=b"]
    return project.run(*pip, ACCELERATOR="cpu")


@pytest.fixture(params=[make_setup, make_wheelhouse, docker_build, conda_create])
def install(
    request: pytest.FixtureRequest,
) -> Callable[[Project], subprocess.CompletedProcess[str]]:
    return request.param


@pytest.fixture(autouse=True)
def configure(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Remove this machine's pip configuration; return a function that sets another index."""
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name in ("TORCH_INDEX", "WHEELHOUSE", "ACCELERATOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    return partial(monkeypatch.setenv, "PIP_INDEX_URL")


def test_pytorchs_index_is_used_for_torch_alone_if_pips_own_has_no_build(
    install: Callable[[Project], subprocess.CompletedProcess[str]],
    configure: Callable[[str], None],
    without_build: Index,
    pytorch: Index,
    tmp_path: Path,
) -> None:
    configure(without_build.url)
    project = Project(tmp_path / "project", pytorch.url)
    ended = install(project)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert project.installed() == {"torch-2.13.0+cpu", "attrs-26.1.0"}
    assert set(pytorch.requested) == {"torch"}
    assert set(without_build.requested) - {"pip"} == {"torch", "attrs"}


def test_pytorchs_index_is_never_used_if_pips_own_has_the_build(
    install: Callable[[Project], subprocess.CompletedProcess[str]],
    configure: Callable[[str], None],
    with_build: Index,
    pytorch: Index,
    tmp_path: Path,
) -> None:
    configure(with_build.url)
    project = Project(tmp_path / "project", pytorch.url)
    ended = install(project)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert project.installed() == {"torch-2.13.0+cpu", "attrs-26.1.0"}
    assert pytorch.requested == []


def test_torch_index_replaces_pytorchs_index(
    install: Callable[[Project], subprocess.CompletedProcess[str]],
    configure: Callable[[str], None],
    without_build: Index,
    with_build: Index,
    pytorch: Index,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    configure(without_build.url)
    monkeypatch.setenv("TORCH_INDEX", with_build.url)
    project = Project(tmp_path / "project", pytorch.url)
    ended = install(project)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "torch-2.13.0+cpu" in project.installed()
    assert set(with_build.requested) == {"torch"}
    assert pytorch.requested == []


def test_an_unreachable_index_is_reported_with_the_fix(
    install: Callable[[Project], subprocess.CompletedProcess[str]],
    configure: Callable[[str], None],
    without_build: Index,
    tmp_path: Path,
) -> None:
    configure(without_build.url)
    ended = install(Project(tmp_path / "project", CLOSED_PORT))
    assert ended.returncode != 0
    assert (
        "torch==2.13.0+cpu was not found: the indexes that pip is configured with do not offer it, "
        "and PyTorch's index of CPU wheels (requirements/torch-index.txt) does not either or "
        "cannot be reached."
    ) in ended.stderr
    assert "make setup TORCH_INDEX=URL" in ended.stderr


@pytest.mark.parametrize("package", ["torch-2.13.0+cpu", "attrs-26.1.0"])
def test_a_file_with_another_hash_is_refused(
    install: Callable[[Project], subprocess.CompletedProcess[str]],
    configure: Callable[[str], None],
    with_build: Index,
    pytorch: Index,
    package: str,
    tmp_path: Path,
) -> None:
    configure(with_build.url)
    wheel = with_build.folder / package.partition("-")[0] / f"{package}-py3-none-any.whl"
    write_wheel(wheel, summary="changed")
    project = Project(tmp_path / "project", pytorch.url)
    ended = install(project)
    assert ended.returncode != 0
    log = project.root / "log"
    output = ended.stdout + ended.stderr + (log.read_text() if log.exists() else "")
    assert "DO NOT MATCH THE HASHES" in output
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() in output
    assert package not in project.installed()


def test_a_wrong_torch_index_is_reported_with_its_value(
    configure: Callable[[str], None],
    without_build: Index,
    pytorch: Index,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    configure(without_build.url)
    monkeypatch.setenv("TORCH_INDEX", CLOSED_PORT)
    ended = docker_build(Project(tmp_path / "project", pytorch.url))
    assert ended.returncode != 0
    assert f"neither TORCH_INDEX ({CLOSED_PORT}) nor the indexes" in ended.stderr
    assert pytorch.requested == []


class TestRule:
    """The rule itself, with a function in place of pip."""

    calls: list[list[str]]

    def run(
        self, pin: str, tmp_path: Path, message: str = "No matching distribution found for"
    ) -> None:
        self.calls = []
        lock = tmp_path / "lock.txt"
        lock.write_text(f"# A lock\n{pin}\n")

        def fail(arguments: list[str]) -> None:
            self.calls.append(arguments[3:])
            assert arguments[:2] == ["--require-hashes", "--requirement"]
            assert Path(arguments[2]).read_text() == pin
            raise TORCH_INDEX.PipError(f"ERROR: {message} {pin}")

        with pytest.raises(TORCH_INDEX.PipError):
            TORCH_INDEX.run_pip_for_torch(lock, fail)

    def test_a_gpu_environment_never_gets_the_cpu_build(self, tmp_path: Path) -> None:
        self.run("torch==2.13.0", tmp_path)
        assert self.calls == [[]]

    def test_another_failure_does_not_lead_to_another_index(self, tmp_path: Path) -> None:
        self.run("torch==2.13.0+cpu", tmp_path, "No space left on device for")
        assert self.calls == [[]]

    def test_a_wheelhouse_uses_no_index(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        self.run("torch==2.13.0+cpu", tmp_path)
        assert self.calls == [[]]


def test_one_file_names_pytorchs_index() -> None:
    (host,) = re.findall(
        "https://([a-z.]+)/", (ROOT / "requirements" / "torch-index.txt").read_text()
    )
    command = ["git", "grep", "--files-with-matches", "--fixed-strings", host]
    files = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert files.split() == ["requirements/torch-index.txt"]
