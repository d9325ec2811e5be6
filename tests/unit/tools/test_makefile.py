"""The selections of tests in the Makefile are expressions that pytest accepts."""

import re
import subprocess

import pytest
from _pytest.mark.expression import Expression
from support.paths import ROOT

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
