"""The last line of every benchmark: one JSON object, in the form DESIGN.md gives."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime

from workbench.runs.provenance import hardware, versions

Goal = Mapping[str, float]


def report(
    name: str,
    figures: Mapping[str, float | int | str | None],
    goals: Mapping[str, Goal] | None = None,
) -> bool:
    """Print the line; whether every goal was met.

    A goal is `{"max": 10}`, `{"min": 0.9}` or both, for a figure of that name. A figure that is
    absent or None has not met its goal; one without a goal has no entry in `met`.
    """
    met = {figure: _is_met(figures.get(figure), goal) for figure, goal in (goals or {}).items()}
    line = {
        "name": name,
        "figures": dict(figures),
        "goals": {figure: dict(goal) for figure, goal in (goals or {}).items()},
        "met": met,
        "machine": hardware(),
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    print(json.dumps(line), flush=True)
    return all(met.values())


def _is_met(value: float | int | str | None, goal: Goal) -> bool:
    if not goal.keys() <= {"max", "min"} or not goal:
        raise ValueError(f"a goal is {dict(goal)}: give 'max', 'min' or both")
    if not isinstance(value, int | float):
        return False
    return goal.get("min", float("-inf")) <= value <= goal.get("max", float("inf"))
