"""The table of docs/clients.md."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from support.client_table import REASON_CHARS, Results, render


def report(outcome: str) -> Any:
    return SimpleNamespace(outcome=outcome)


def rows(results: Results) -> list[list[str]]:
    lines = [line for line in render(results).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_a_row_has_the_results_of_both_paths() -> None:
    results = Results(versions={"openai": "3.1"})
    results.add("openai", "chat", "direct", report("passed"), None)
    error = AssertionError("404 <no> a|b\nmore")
    results.add("openai", "chat", "composed", report("failed"), error)
    results.add("openai", "chat", "composed", report("failed"), RuntimeError("of its teardown"))
    (row,) = rows(results)
    assert row == ["OpenAI, Python", "3.1", "chat", "ok", "fails: 404 &lt;no> a\\|b"]


def test_what_did_not_run_is_not_ok() -> None:
    results = Results()
    skipped = pytest.skip.Exception("aiperf.txt is not installed: no network")
    results.add("aiperf", "load", "direct", report("skipped"), skipped)
    (row,) = rows(results)
    assert row[3:] == ["not run: aiperf.txt is not installed: no network", "not run"]


def test_clients_are_in_a_fixed_order_and_reasons_are_short() -> None:
    results = Results()
    results.add("aiperf", "load", "direct", report("failed"), AssertionError("x" * 1000))
    results.add("openai", "stream", "direct", report("passed"), None)
    results.add("openai", "chat", "direct", report("passed"), None)
    table = rows(results)
    assert [row[0] for row in table] == ["OpenAI, Python", "OpenAI, Python", "AIPerf"]
    assert [row[2] for row in table] == ["stream", "chat", "load"]
    assert len(table[2][3]) == len("fails: ") + REASON_CHARS
