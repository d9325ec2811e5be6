"""The documents refer only to files, headings, commands and variables that exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (".", ".github", "benchmarks", "docs", "requirements")
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


def test_the_readme_is_short() -> None:
    assert len(read("README.md").splitlines()) <= 120


def test_every_notebook_is_in_the_readme() -> None:
    text = read("README.md")
    notebooks = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    assert notebooks
    assert [path.name for path in notebooks if f"(notebooks/{path.name})" not in text] == []


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
