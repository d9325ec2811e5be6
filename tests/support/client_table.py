"""The table of what other projects' clients can do, in docs/clients.md."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

TITLES = {
    "openai": "OpenAI, Python",
    "javascript": "OpenAI, JavaScript",
    "litellm": "LiteLLM",
    "langchain": "LangChain (langchain-openai)",
    "instructor": "Instructor",
    "anthropic": "Anthropic, Python",
    "vllm": "`vllm bench serve`",
    "guidellm": "GuideLLM",
    "aiperf": "AIPerf",
}
PATHS = ("direct", "composed")
REASON_CHARS = 160
HEADER = """\
# Clients

Other projects' clients and load generators, each in an environment of its own, against the embedded
model on the direct and on the composed path. `make test-clients` runs them and writes this page.
Each check compares what the client returned or raised with a source outside the service: the
glossary that the model has memorized, its tokenizer, the JSON schemas, the engine's own metrics or
the client's own exception classes. `tests/clients/judge.py` defines them.

| client | version | check | direct | composed |
| --- | --- | --- | --- | --- |
"""


@dataclass
class Results:
    """The versions of the clients, and the result of each check on each path."""

    versions: dict[str, str] = field(default_factory=dict)
    outcomes: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)

    def add(
        self,
        client: str,
        check: str,
        path: str,
        report: pytest.TestReport,
        error: BaseException | None,
    ) -> None:
        """Keep the result of a check; a failure is not replaced by that of a later phase."""
        outcome = {"passed": "ok", "skipped": "not run", "failed": "fails"}[report.outcome]
        cell = outcome if error is None else f"{outcome}: {summary(error)}"
        self.outcomes.setdefault((client, check), {}).setdefault(path, cell)


def summary(error: BaseException) -> str:
    """Return the first line of an error as the content of a table cell."""
    lines = str(error).strip().splitlines()
    text = re.sub(r"\s+", " ", lines[0] if lines else type(error).__name__)
    text = text if len(text) <= REASON_CHARS else f"{text[: REASON_CHARS - 3]}..."
    return text.replace("|", "\\|").replace("<", "&lt;")


def render(results: Results) -> str:
    """Return the page, with clients in the order of TITLES and checks in that of the run."""
    order = list(TITLES)
    rows = sorted(results.outcomes.items(), key=lambda item: order.index(item[0][0]))
    lines = []
    for (client, check), cells in rows:
        version = results.versions.get(client, "-")
        outcomes = " | ".join(cells.get(path, "not run") for path in PATHS)
        lines.append(f"| {TITLES[client]} | {version} | {check} | {outcomes} |")
    return HEADER + "\n".join(lines) + "\n"


def write_table(results: Results, path: Path) -> None:
    """Write the page."""
    path.write_text(render(results))
