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


def printed(*arguments: str) -> str:
    """The commands that make would run."""
    command = ["make", "--dry-run", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=True).stdout


@pytest.mark.parametrize(
    "target", ["fast", "test", "test-all", "coverage", "test-browser", "test-clients"]
)
def test_every_selection_of_a_target_is_an_expression_of_known_markers(target: str) -> None:
    commands = printed(target).replace("\\\n", "")
    selections = re.findall(r'pytest .*?-m "?([^"\n]*)', commands)
    assert selections
    markers = set(re.findall(r"\w+", " ".join(selections))) - {"and", "not", "or"}
    assert markers <= MARKERS
    for selection in selections:
        Expression.compile(selection)


def test_every_complete_notebook_has_one_target_of_its_own() -> None:
    commands = printed("engine", "EXTENT=")
    selections = re.findall(r"pytest .*test_notebooks_whole\.py -k (\S+)", commands)
    tests = re.findall(r"^def (test_\w+)", COMPLETE.read_text(), re.MULTILINE)
    assert tests
    for test in tests:
        assert sum(selection in test for selection in selections) == 1, test


def test_after_check_the_fast_stage_has_what_check_left_out() -> None:
    checked = fast_selection("check")
    rest = fast_selection("test-all", "CHECKED=1")
    whole = fast_selection("test-all")
    for size in range(len(MARKERS) + 1):
        for markers in itertools.combinations(sorted(MARKERS), size):
            times = selects(checked, markers) + selects(rest, markers)
            assert times == selects(whole, markers)


def fast_selection(*arguments: str) -> Expression:
    (selection,) = re.findall(r'pytest -q -n 3 .*?-m "([^"]*)', printed(*arguments))
    return Expression.compile(selection)


def selects(expression: Expression, markers: tuple[str, ...]) -> bool:
    def has(name: str, /, **_: Any) -> bool:
        return name in markers

    return expression.evaluate(has)
