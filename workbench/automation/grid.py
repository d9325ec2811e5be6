"""The grid of a sweep: its cells, and the checks before anything runs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import Field

from serving.spec.base import Frozen
from workbench.automation.notebooks import check_parameters, parameters_of, read_value
from workbench.errors import SettingError
from workbench.runs.redact import redact
from workbench.runs.run import LOCATION_PARAMETERS


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: all of its parameters, those of them that vary, and the repeat."""

    parameters: Mapping[str, Any]
    varied: Mapping[str, Any]
    repeat: int

    @property
    def run_id(self) -> str:
        """The id of the run, equal for equal parameters: readable parts, and a hash of all."""
        # Secrets are not hashed: another key does not make another cell.
        text = json.dumps(redact(self.parameters), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        parts = [f"{name}-{value}" for name, value in self.varied.items()]
        readable = [re.sub(r"[^A-Za-z0-9_.-]+", "", part)[:32] for part in parts]
        return f"{'_'.join(readable)[:120]}_{digest}_{self.repeat}"

    def is_done(self, out: Path) -> bool:
        """Return whether the cell's run in the sweep's folder `out` is complete."""
        return (out / self.run_id / "summary.json").exists()

    def __str__(self) -> str:
        values = " ".join(f"{name}={value}" for name, value in self.varied.items())
        return f"{values}, repeat {self.repeat}" if self.repeat > 1 else values


class Sweep(Frozen):
    """The content of `sweep.json`. Grid and `fixed` together have every notebook parameter."""

    notebook: str
    grid: dict[str, list[Any]] = Field(min_length=1)
    repeats: int = Field(1, ge=1)
    fixed: dict[str, Any]

    def cells(self) -> list[Cell]:
        """Return the product of the grid, once for each repeat."""
        # Repeats of a cell are far apart in time, so that their spread shows a machine's drift.
        names = sorted(self.grid)
        points = [
            dict(zip(names, values, strict=True))
            for values in product(*(self.grid[name] for name in names))
        ]
        return [
            Cell({**self.fixed, **varied}, varied, repeat)
            for repeat in range(1, self.repeats + 1)
            for varied in points
        ]


def make_sweep(
    path: Path, grid: Sequence[str], parameters: Mapping[str, Any], *, repeats: int = 1
) -> Sweep:
    """Return the sweep of a notebook.

    Args:
        path: The notebook.
        grid: Texts of the form `NAME=V1,V2,...`.
        parameters: Parameters with one value.
        repeats: Runs of each cell.

    Raises:
        SettingError: If the notebook cannot run with these parameters.
    """
    defaults = parameters_of(path)
    check_parameters(path, parameters)
    axes: dict[str, list[Any]] = {}
    for text in grid:
        name, sign, values = text.partition("=")
        if not sign or not values or name in axes:
            raise SettingError(
                f"--grid must be NAME=V1,V2,... and name each parameter once, got {text!r}"
            )
        # Commas within brackets belong to a value that is a list.
        parts = re.split(r",(?![^\[{]*[\]}])", values)
        axes[name] = [read_value(part, defaults.get(name)) for part in parts]
    _check_axes(path, axes, parameters)
    if repeats < 1:
        raise SettingError(f"--repeats must be at least 1, got {repeats}")
    fixed = {
        n: v
        for n, v in {**defaults, **parameters}.items()
        if n not in (*axes, *LOCATION_PARAMETERS)
    }
    return Sweep(notebook=path.stem, grid=axes, repeats=repeats, fixed=fixed)


def _check_axes(path: Path, axes: Mapping[str, list[Any]], parameters: Mapping[str, Any]) -> None:
    missing = [name for name in LOCATION_PARAMETERS if name not in parameters_of(path)]
    if missing:
        raise SettingError(f"notebook {path.stem} has no parameter {missing[0]}: a sweep needs it")
    for name, values in axes.items():
        for value in values:
            check_parameters(path, {name: value})
        if len({repr(value) for value in values}) < len(values):
            raise SettingError(f"--grid has a value of {name} twice: use --repeats for repeats")
        if redact({name: values})[name] != values:
            raise SettingError(f"{name} is secret and no run keeps it: remove it from --grid")
    for name in (*parameters, *axes):
        if name in LOCATION_PARAMETERS:
            raise SettingError(f"{name} is set by the sweep: give its folder with --runs")
        if name in parameters and name in axes:
            raise SettingError(
                f"{name} must be given once, got it in --grid and as a parameter: remove one"
            )
