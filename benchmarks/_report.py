"""The last line of every benchmark: one JSON object with figures, goals and the machine."""

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
    """Print the line, and return whether every goal was met.

    Args:
        name: Name of the benchmark.
        figures: The measured values.
        goals: `{"max": 10}`, `{"min": 0.9}` or both, by the name of a figure. A figure that is
            absent or None does not meet its goal.
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
        raise ValueError(f"a goal must have 'max', 'min' or both, got {dict(goal)}")
    if not isinstance(value, int | float):
        return False
    return goal.get("min", float("-inf")) <= value <= goal.get("max", float("inf"))
