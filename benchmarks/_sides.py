"""Benchmarks whose sides cannot run at the same time, because each needs every card.

    python benchmarks/NAME.py SIDE > side.json
    python benchmarks/NAME.py verdict side.json other.json

measures one side and compares those that have been measured; without arguments all sides are
measured in turn. Each side has its own prefix or suffix in the names of its figures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from _report import Goal, report

Figures = dict[str, float | int | str | None]
Compare = Callable[[dict[str, Any]], tuple[Figures, Mapping[str, Goal]]]


def add_side_arguments(parser: argparse.ArgumentParser, sides: Iterable[str]) -> None:
    """Add the arguments that select a side, or the results to compare."""
    choices = [*sides, "all", "verdict"]
    parser.add_argument("side", nargs="?", default="all", choices=choices)
    parser.add_argument("results", nargs="*", help="files with results, for verdict")


def report_sides(
    name: str,
    options: argparse.Namespace,
    sides: Iterable[str],
    measure: Callable[[str], Figures],
    compare: Compare,
) -> None:
    """Measure the selected sides or read their results, and print the result as the last line.

    Args:
        name: Name of the benchmark.
        options: The parsed arguments of `add_side_arguments`.
        sides: The sides that can be measured here.
        measure: Returns the figures of a side.
        compare: Returns the figures of all sides with what follows from them, and their goals.
    """
    if options.side == "verdict":
        figures = read_figures(options.results)
    elif options.side == "all":
        figures = {key: value for side in sides for key, value in measure(side).items()}
    else:
        report(name, measure(options.side))
        return
    report(name, *compare(figures))


def read_figures(paths: Iterable[str | Path]) -> dict[str, Any]:
    """Return the figures of several results, each the last line of a file, together."""
    figures: dict[str, Any] = {}
    for path in paths:
        line = Path(path).read_text(encoding="utf-8").strip().splitlines()[-1]
        figures |= json.loads(line)["figures"]
    return figures
