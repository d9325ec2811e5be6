"""The pages of the docs site that are generated: the API, and the glossary."""

from __future__ import annotations

import inspect
import json
from types import ModuleType
from typing import Any

from docs_sources import ROOT, write

import workbench as wb

GLOSSARY = ROOT / "tools" / "tiny_model" / "glossary.jsonl"
GLOSSARY_PAGE = "docs/glossary.md"
OVERVIEW = "reference/README.md"
GROUPS = {
    "deploy": ("Deploy", ("serving.spec", "serving.errors", "workbench.endpoints")),
    "load": ("Load", ("workbench.workload", "workbench.loadgen")),
    "measure": (
        "Measure",
        ("workbench.experiments", "workbench.metrics", "workbench.telemetry", "workbench.cost"),
    ),
    "runs": ("Runs and notebooks", ("workbench",)),
}
"""The pages of the core names: each has the names from these packages that no earlier page has."""
_INTRODUCTION = """\
# API

`import workbench as wb` loads nothing else; every name is loaded when it is first used. The core
names are in `wb` itself, the others in namespaces such as `wb.figures`.
"""
_GLOSSARY = """\
# Glossary

These are the terms that the embedded model has memorized, too: ask it "What is a KV cache?".
"""


def write_reference() -> None:
    """Write a page for each group of core names and for each namespace, and their overview."""
    core, namespaces = split()
    overview = [_INTRODUCTION]
    for page, (title, names) in grouped(core).items():
        members = {name: core[name] for name in names}
        write(f"reference/{page}.md", api_page(title, "workbench", members))
        overview.append(table(f"## {title}", page, "workbench", members))
    overview.append("## Namespaces\n")
    for name, module in namespaces.items():
        path = f"workbench.{name}"
        members = {member: getattr(module, member) for member in module.__all__}
        title = f"wb.{name}"
        write(f"reference/{name}.md", api_page(title, path, members, summary(module)))
        overview.append(table(f"### {title}\n\n{summary(module)}", name, path, members))
    write(OVERVIEW, "\n".join(overview))


def pages() -> list[str]:
    """Return the paths of the pages that `write_reference` writes."""
    names = [*GROUPS, *split()[1]]
    return [OVERVIEW, *(f"reference/{name}.md" for name in names)]


def split() -> tuple[dict[str, Any], dict[str, ModuleType]]:
    """Return the core names of `wb` and its namespaces."""
    names = {name: getattr(wb, name) for name in dir(wb)}
    modules = {name: value for name, value in names.items() if inspect.ismodule(value)}
    return {name: value for name, value in names.items() if name not in modules}, modules


def grouped(core: dict[str, Any]) -> dict[str, tuple[str, list[str]]]:
    """Return the title and the names of each page of core names."""
    left = dict(core)
    groups = {}
    for page, (title, packages) in GROUPS.items():
        names = [name for name, value in left.items() if value.__module__.startswith(packages)]
        groups[page] = (title, names)
        left = {name: value for name, value in left.items() if name not in names}
    return groups


def api_page(title: str, path: str, members: dict[str, Any], text: str = "") -> str:
    """Return a page with the documentation of some members of a module.

    Args:
        title: The page's title.
        path: The dotted path of the module.
        members: The members by name.
        text: What the module is for.
    """
    blocks = [f"::: {path}.{name}" for name in sorted(members, key=str.lower)]
    return "\n\n".join([f"# {title}", text, *blocks]) + "\n"


def table(heading: str, page: str, path: str, members: dict[str, Any]) -> str:
    """Return a table of the members of a module, with links to their documentation."""
    rows = [
        f"| [`{name}`]({page}.md#{path}.{name}) | {summary(value)} |"
        for name, value in sorted(members.items(), key=lambda member: member[0].lower())
    ]
    return "\n".join([heading, "", "| name | |", "| --- | --- |", *rows, ""])


def summary(value: Any) -> str:
    """Return the first line of what documents a module, class or function."""
    documented = inspect.ismodule(value) or inspect.isclass(value) or inspect.isroutine(value)
    text = (inspect.getdoc(value) or "") if documented else ""
    return text.partition("\n\n")[0].replace("\n", " ").replace("|", r"\|").replace("``", "`")


def write_glossary() -> None:
    """Write the glossary from the texts that the embedded model was trained on."""
    entries = [json.loads(line) for line in GLOSSARY.read_text(encoding="utf-8").splitlines()]
    parts = [_GLOSSARY]
    for entry in sorted(entries, key=lambda entry: entry["term"].lower()):
        also = ", ".join(entry["aliases"])
        suffix = f" *Also: {also}.*" if also else ""
        parts.append(f"## {entry['term']}\n\n{entry['definition']}{suffix}\n")
    write(GLOSSARY_PAGE, "\n".join(parts))
