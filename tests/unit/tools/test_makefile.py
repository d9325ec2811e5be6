"""The selections of tests in the Makefile are expressions that pytest accepts."""

import itertools
import re
import subprocess
from typing import Any

import pytest
from _pytest.mark.expression import Expression
from support.paths import ROOT

COMPLETE = ROOT / "tests" / "notebooks" / "test_notebooks_whole.py"
MARKERS = {"engine", "shared_cluster", "gpu", "timing", "slow", "browser", "clients"}


@pytest.mark.parametrize(
    "target", ["fast", "test", "test-all", "coverage", "test-browser", "test-clients"]
)
def test_every_selection_of_a_target_is_an_expression_of_known_markers(target: str) -> None:
    printed = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", target],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=True,
    ).stdout
    selections = re.findall(r'pytest .*?-m "?([^"\n]*)', printed.replace("\\\n", ""))
    assert selections
    markers = set(re.findall(r"\w+", " ".join(selections))) - {"and", "not", "or"}
    assert markers <= MARKERS
    for selection in selections:
        Expression.compile(selection)


def test_every_complete_notebook_has_one_target_of_its_own() -> None:
    printed = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", "engine", "EXTENT="],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=True,
    ).stdout
    selections = re.findall(r"pytest .*test_notebooks_whole\.py -k (\S+)", printed)
    tests = re.findall(r"^def (test_\w+)", COMPLETE.read_text(), re.MULTILINE)
    assert tests
    assert [sum(selection in test for selection in selections) for test in tests] == [1] * len(
        tests
    )


def test_after_check_the_fast_stage_has_what_check_left_out() -> None:
    def fast(*given: str) -> str:
        printed = subprocess.run(
            ["make", "--dry-run", "--no-print-directory", *given],
            cwd=ROOT,
            text=True,
            capture_output=True,
            check=True,
        ).stdout
        (selection,) = re.findall(r'pytest -q -n 3 .*?-m "([^"]*)', printed)
        return selection

    checked, rest = (
        Expression.compile(fast("check")),
        Expression.compile(fast("test-all", "CHECKED=1")),
    )
    whole = Expression.compile(fast("test-all"))
    for size in range(len(MARKERS) + 1):
        for markers in itertools.combinations(sorted(MARKERS), size):
            twice = selects(checked, markers) + selects(rest, markers)
            assert twice == selects(whole, markers)


def selects(expression: Expression, markers: tuple[str, ...]) -> bool:
    def has(name: str, /, **_: Any) -> bool:
        return name in markers

    return expression.evaluate(has)
