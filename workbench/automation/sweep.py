"""A sweep runs a notebook once for each cell of a grid of parameters, and can be gone on with.

Its folder holds a run folder for each cell, `sweep.json` (grid and fixed parameters) and
`results.csv`. A cell is done when its run folder has a `summary.json`.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from serving.errors import WorkbenchError
from serving.spec.base import Frozen
from workbench.automation.notebooks import check_parameters, parameters_of, read_value
from workbench.errors import RunError, SettingError
from workbench.metrics.registry import COUNTS, RATES, compared_figures
from workbench.runs.redact import redact
from workbench.runs.run import LOCATION_PARAMETERS

FIGURES = (*COUNTS, "duration", *RATES, *compared_figures("median", "p95", "p99"))
_SHOWN = (
    *("completed", "failed", "shed", "request_throughput", "output_throughput", "slo_attainment"),
    *("median_ttft_ms", "p99_ttft_ms", "median_tpot_ms", "p99_e2el_ms", "client_limited"),
)
ASIDE = "cut_off"


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: all of its parameters, and those of them that vary."""

    parameters: Mapping[str, Any]
    varied: Mapping[str, Any]
    repeat: int

    @property
    def run_id(self) -> str:
        """The same for the same parameters: readable parts, and a hash of all of them."""
        # A key that changes between two sittings makes no other cell, and is in no hash.
        text = json.dumps(redact(self.parameters), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        parts = [f"{name}-{value}" for name, value in self.varied.items()]
        readable = [re.sub(r"[^A-Za-z0-9_.-]+", "", part)[:32] for part in parts]
        return f"{'_'.join(readable)[:120]}_{digest}_{self.repeat}"

    def __str__(self) -> str:
        said = " ".join(f"{name}={value}" for name, value in self.varied.items())
        return f"{said}, repeat {self.repeat}" if self.repeat > 1 else said


class Sweep(Frozen):
    """What `sweep.json` holds: with `fixed`, every parameter of the notebook has its value."""

    notebook: str
    grid: dict[str, list[Any]] = Field(min_length=1)
    repeats: int = Field(1, ge=1)
    fixed: dict[str, Any]

    def cells(self) -> list[Cell]:
        """The product of the grid, once through for each repeat."""
        # Repeats of a cell far apart in time: a machine that drifts then shows in their spread.
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
    path: Path, grid: Sequence[str], given: Mapping[str, Any], *, repeats: int = 1
) -> Sweep:
    """The sweep that `NAME=V1,V2,...` texts ask for. Raises SettingError before anything runs."""
    defaults = parameters_of(path)
    check_parameters(path, given)
    axes: dict[str, list[Any]] = {}
    for text in grid:
        name, sign, values = text.partition("=")
        if not sign or not values or name in axes:
            raise SettingError(f"--grid is {text!r}: give NAME=V1,V2,... once for each name")
        # Commas within brackets belong to a value that is a list.
        parts = re.split(r",(?![^\[{]*[\]}])", values)
        axes[name] = [read_value(part, defaults.get(name)) for part in parts]
    _check_axes(path, axes, given)
    if repeats < 1:
        raise SettingError(f"--repeats is {repeats}: give 1 or more")
    fixed = {
        n: v for n, v in {**defaults, **given}.items() if n not in (*axes, *LOCATION_PARAMETERS)
    }
    return Sweep(notebook=path.stem, grid=axes, repeats=repeats, fixed=fixed)


def _check_axes(path: Path, axes: Mapping[str, list[Any]], given: Mapping[str, Any]) -> None:
    lacking = [name for name in LOCATION_PARAMETERS if name not in parameters_of(path)]
    if lacking:
        raise SettingError(f"notebook {path.stem} has no parameter {lacking[0]}: a sweep needs it")
    for name, values in axes.items():
        for value in values:
            check_parameters(path, {name: value})
        if len({repr(value) for value in values}) < len(values):
            raise SettingError(f"--grid has a value of {name} twice; use --repeats for repeats")
        if redact({name: values})[name] != values:
            raise SettingError(f"{name} holds secrets, which no run keeps: leave it out of --grid")
    for name in (*given, *axes):
        if name in LOCATION_PARAMETERS:
            raise SettingError(f"{name} is made by the sweep; give --out for its folder")
        if name in given and name in axes:
            raise SettingError(f"{name} is both in --grid and given as one value; drop one")


@contextmanager
def opened(out: Path, sweep: Sweep) -> Iterator[None]:
    """Hold the folder of a sweep, new or to go on with, and keep the sweep in its `sweep.json`.

    Raises SettingError if the sweep there has other parameters, or cells that this one lacks, and
    RunError while another process works in it.
    """
    out.mkdir(parents=True, exist_ok=True)
    file = out / "sweep.json"
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{out} is in use by another sweep; wait for it, or stop it") from None
        kept = sweep.model_copy(update={"fixed": redact(sweep.fixed)})
        if file.exists():
            _check_adds(_read(file), kept, out)
        part = file.with_suffix(".part")
        part.write_text(kept.model_dump_json(indent=2) + "\n", encoding="utf-8")
        part.replace(file)
        yield


def _read(file: Path) -> Sweep:
    try:
        return Sweep.model_validate_json(file.read_text(encoding="utf-8"))
    except ValidationError:
        raise SettingError(f"{file} holds no sweep that can be gone on with: move it") from None


def _check_adds(before: Sweep, now: Sweep, out: Path) -> None:
    was, given = ({"notebook": s.notebook, **s.fixed} for s in (before, now))
    for name in was.keys() | given.keys():
        if name not in (*before.grid, *now.grid) and was.get(name) != given.get(name):
            raise SettingError(
                f"{name} is {given.get(name)!r}, but {was.get(name)!r} in the sweep in {out}: give "
                "another --out"
            )
    new = {cell.run_id for cell in now.cells()}
    lost = [cell for cell in before.cells() if cell.run_id not in new]
    if lost:
        raise SettingError(
            f"--grid lacks {len(lost)} cells of the sweep in {out} ({lost[0]} is one): only add "
            "values or repeats, or give another --out"
        )


def run_sweep(
    sweep: Sweep,
    out: Path,
    *,
    run: Callable[[Cell], object],
    clock: Callable[[], float],
    say: Callable[[str], None],
) -> bool:
    """Run every cell that is not done; whether all are done then. A failing one stops no other.

    `run` runs one cell into `out / cell.run_id`; `clock` gives seconds, for the time left.
    """
    cells, errors, took = sweep.cells(), dict[str, str](), list[float]()
    todo = [cell for cell in cells if not _done(out, cell)]
    for cell in cells:
        if cell not in todo:
            say(f"skipped, it is done: {cell}")
    for index, cell in enumerate(todo):
        say(f"[{cells.index(cell) + 1}/{len(cells)}] {cell}{_left(took, len(todo) - index)}")
        start, error = clock(), _attempt(run, out, cell)
        if error is None:
            took.append(clock() - start)
        else:
            errors[cell.run_id] = error
            say(f"failed: {error}")
        write_results(out, cells, errors)
    write_results(out, cells, errors)
    return all(_done(out, cell) for cell in cells) and not errors


def _done(out: Path, cell: Cell) -> bool:
    return (out / cell.run_id / "summary.json").exists()


def _attempt(run: Callable[[Cell], object], out: Path, cell: Cell) -> str | None:
    """Run one cell; returns its error. What a run that was cut off left behind is moved aside."""
    folder, aside = out / cell.run_id, out / ASIDE / cell.run_id
    if folder.exists():
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(exist_ok=True)
        folder.replace(aside)
    try:
        run(cell)
    except WorkbenchError as problem:
        return str(problem)
    return None if _done(out, cell) else f"it ended without writing {folder / 'summary.json'}"


def _left(took: Sequence[float], cells: int) -> str:
    if not took:
        return ""
    seconds = sum(took) / len(took) * cells
    said = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
    return f" (about {said} left)"


def write_results(out: Path, cells: Sequence[Cell], errors: Mapping[str, str]) -> None:
    """Write `results.csv` whole: a row a cell, with parameters, status and summary figures."""
    rows = [_row(out, cell, errors) for cell in cells]
    part = out / "results.part"
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    part.replace(out / "results.csv")


def _row(out: Path, cell: Cell, errors: Mapping[str, str]) -> dict[str, Any]:
    error, figures = errors.get(cell.run_id), dict[str, Any]()
    done = _done(out, cell)
    if done:
        try:
            figures = json.loads((out / cell.run_id / "summary.json").read_bytes())
        except ValueError:
            error = "its summary.json cannot be read: remove the run's folder to run it again"
    status = "failed" if error else "done" if done else "pending"
    found = {"run_id": cell.run_id, "repeat": cell.repeat, "status": status}
    found |= {name: figures.get(name) for name in FIGURES}
    found |= {"client_limited": (figures.get("client_health") or {}).get("client_limited")}
    # A notebook's parameter may have the name of a figure, for instance `duration`.
    parameters = {
        f"parameter_{name}" if name in found else name: value
        for name, value in redact(cell.parameters).items()
    }
    return {**parameters, **found, "error": error}


def results_table(out: Path, sweep: Sweep) -> str:
    """What varies and the main figures of `results.csv` as aligned text; all of them are in it."""
    with (out / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    varied = [name if name in rows[0] else f"parameter_{name}" for name in sorted(sweep.grid)]
    wanted = [*varied, "repeat", "status", *_SHOWN]
    names = [name for name in wanted if any(row[name] for row in rows)]
    lines = [names, *([_short(row[name]) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True))
        for line in lines
    )


def _short(text: str) -> str:
    try:
        return f"{float(text):.4g}" if "." in text else text or "-"
    except ValueError:
        return text
