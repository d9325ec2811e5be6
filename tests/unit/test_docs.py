"""The documents refer only to files, headings, commands, variables and names that exist."""

from __future__ import annotations

import ast
import asyncio
import re
import sys
import tomllib
from functools import reduce
from pathlib import Path
from types import CodeType
from typing import Any
from unittest.mock import MagicMock, create_autospec

import pytest
import yaml

import workbench as wb
from workbench.__main__ import parser
from workbench.loadgen.handle import LoadResult

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (".", ".github", "benchmarks", "docs", "requirements", "serving/models/*")
DOCUMENTS = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.md"))
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
TOP_LEVEL = (
    r"(?:\.ci|benchmarks|deploy|docs|notebooks|requirements|scripts|serving|tests|tools|workbench)"
)
# Uppercase letters stand for a name of the reader's.
PATH = re.compile(rf"`({TOP_LEVEL}/[a-z0-9_./*-]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def prose(text: str) -> str:
    """The text without fenced code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_relative_links_resolve(name: str) -> None:
    for link in LINK.findall(prose(read(name))):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        path = (ROOT / name).parent / target if target else ROOT / name
        assert path.exists(), f"{name} links to {link}"
        if anchor:
            assert anchor in anchors(path.read_text(encoding="utf-8")), f"{name} links to {link}"


@pytest.mark.parametrize("name", NAMES)
def test_paths_exist(name: str) -> None:
    # The changelog names paths of earlier versions as well.
    paths = set(PATH.findall(read(name))) if name != "CHANGELOG.md" else set()
    missing = [path for path in sorted(paths) if not any(ROOT.glob(path))]
    assert not missing, f"{name} names {', '.join(missing)}"


@pytest.mark.parametrize("name", NAMES)
def test_make_targets_exist(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    named = set(re.findall(r"(?:`|^ {4})make ([a-z-]+)", read(name), re.MULTILINE))
    missing = sorted(f"make {target}" for target in named - targets)
    assert not missing, f"{name} names {', '.join(missing)}"


@pytest.mark.parametrize("name", NAMES)
def test_environment_variables_exist(name: str) -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "serving").rglob("*.py"))
    for variable in re.findall(r"LLM_WORKBENCH_\w+", read(name)):
        assert variable in code, f"{name} names {variable}"


def current_names(name: str) -> list[str]:
    """The names of the public API in a document, without those of 0.1 in the changelog."""
    text = read(name)
    if name == "CHANGELOG.md":
        # | area | 0.1 | 0.2 |
        text = re.sub(r"^(\| [^|]+ )\|[^|]+(\|[^|]+\|)$", r"\1\2", text, flags=re.MULTILINE)
        text = re.sub(r"`wb\.\w+` is\s", "", text)
    return sorted(set(re.findall(r"\bwb((?:\.[A-Za-z_]\w*)+)", text)))


@pytest.mark.parametrize("name", NAMES)
def test_public_names_exist(name: str) -> None:
    for dotted in current_names(name):
        path = dotted[1:].split(".")
        assert path[0] in dir(wb), f"{name} names wb{dotted}"
        assert resolves(path), f"{name} names wb{dotted}"


def resolves(path: list[str]) -> bool:
    try:
        reduce(getattr, path, wb)
    except AttributeError:
        return False
    return True


@pytest.mark.parametrize("name", NAMES)
def test_commands_exist(name: str) -> None:
    """Every line of the form `workbench COMMAND ...` is accepted by the command line's parser."""
    for line in re.findall(r"^ {4}(?:\w+=\S+ )*workbench ([^#|\n]+)", read(name), re.MULTILINE):
        try:
            parser().parse_args(line.split())
        except SystemExit:
            pytest.fail(f"{name} has the command: workbench {line}")


class Documented:
    """`workbench`, with stand-ins for everything that would start an engine.

    A stand-in accepts only the arguments and has only the methods of what it stands in for.
    """

    def __init__(self) -> None:
        endpoint = create_autospec(wb.Endpoint, instance=True)
        endpoint.__enter__.return_value = endpoint
        endpoint.client, endpoint.tenant_keys = MagicMock(), {"ada": "sk-..."}
        result = create_autospec(LoadResult, instance=True)
        self.deploy = create_autospec(wb.deploy, return_value=endpoint)
        self.start_load = create_autospec(wb.start_load)
        self.start_load.side_effect = lambda *_, **__: finished(result)
        self.Session = create_autospec(wb.Session)
        self.remote = create_autospec(wb.remote)
        self.export = create_autospec(wb.export)
        self.analysis = create_autospec(wb.analysis)
        self.figures = create_autospec(wb.figures)
        self.tuning = create_autospec(wb.tuning)
        tuned = create_autospec(wb.tuning.TuningResult, instance=True)
        self.tuning.tune_engine.return_value = tuned
        self.show = create_autospec(wb.show)
        self.classroom = create_autospec(wb.classroom)
        self.classroom.join.return_value = create_autospec(wb.classroom.Seat, instance=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(wb, name)


async def finished(result: Any) -> Any:
    return result


SNIPPETS = [
    (name, code)
    for name in NAMES
    for code in re.findall(r"^```python\n(.*?)^```$", read(name), re.MULTILINE | re.DOTALL)
]


@pytest.mark.parametrize(("name", "code"), SNIPPETS)
def test_python_snippets_run(name: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    documented = Documented()
    monkeypatch.setitem(sys.modules, "workbench", documented)
    spec = wb.ServiceSpec(model=wb.ModelSpec(source="tiny"))
    load = wb.LoadSpec(arrivals=wb.Poisson(rate=1), duration_s=1)
    given = {"wb": documented, "spec": spec, "load": load, "figures": {}, "bounds": None}
    given |= {"run": MagicMock(), "runs": [], "prompts": MagicMock()}
    given["endpoint"] = documented.deploy(spec)
    asyncio.run(execute(compile(code, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), given))


async def execute(code: CodeType, names: dict[str, Any]) -> None:
    result = eval(code, names)
    if result is not None:
        await result


def test_the_readme_is_short() -> None:
    assert len(read("README.md").splitlines()) <= 120


def test_every_notebook_is_in_the_readme() -> None:
    text = read("README.md")
    notebooks = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    assert notebooks
    assert [path.name for path in notebooks if f"(notebooks/{path.name})" not in text] == []


def test_every_benchmark_is_in_their_table() -> None:
    text = read("benchmarks/README.md")
    benchmarks = sorted((ROOT / "benchmarks").glob("[!_]*.py"))
    assert benchmarks
    assert [path.name for path in benchmarks if f"| `{path.name}` |" not in text] == []


@pytest.mark.parametrize("package", ["serving", "workbench"])
def test_the_package_tree_is_complete(package: str) -> None:
    tree = re.search(rf"^{package}/.*\n((?: +.*\n)+)", read("docs/architecture.md"), re.MULTILINE)
    assert tree is not None
    listed = set(re.findall(r"^[ |]+(\w+)/ ", tree[1], re.MULTILINE))
    folders = {path.parent.name for path in (ROOT / package).glob("*/*.py")}
    assert listed == folders


def test_one_version() -> None:
    version = tomllib.loads(read("pyproject.toml"))["project"]["version"]
    assert str(yaml.safe_load(read("CITATION.cff"))["version"]) == version
    assert f"## [{version}]" in read("CHANGELOG.md")
    for name in ("docs/deployment.md", "deploy/rayservice-example.yaml"):
        assert set(re.findall(r"workbench:(\d+\.\d+\.\d+)", read(name))) == {version}


def test_every_guarantee_names_tests_that_exist() -> None:
    section = read("SECURITY.md").partition("### What is guaranteed")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.*) \| (.*) \|$", section, re.MULTILINE)[2:]
    assert rows
    for guarantee, tests in rows:
        files = [path for path in re.findall(r"`([^`]+)`", tests) if path.startswith("tests/")]
        assert files, guarantee
        for file in files:
            assert re.search(r"^ *(async )?def test_", read(file), re.MULTILINE), file
