"""A sweep runs a notebook once for each cell of a grid of parameters, and can be continued.

Its folder holds a run folder per cell, `sweep.json` (grid and fixed parameters) and `results.csv`.
A cell is done if its run folder has a `summary.json`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from serving.errors import WorkbenchError
from workbench.automation.grid import Cell, Sweep
from workbench.automation.sweep_results import write_results
from workbench.errors import SettingError
from workbench.quantities import rough_duration
from workbench.runs.lock import lock_folder
from workbench.runs.redact import redact

INTERRUPTED = "cut_off"
"""The folder for runs that were cut off."""


@contextmanager
def open_sweep(out: Path, sweep: Sweep) -> Iterator[None]:
    """Lock the folder of a sweep, new or to be continued, and keep the sweep in `sweep.json`.

    Raises:
        SettingError: If the sweep there has other parameters, or cells that this one lacks.
        RunError: If another process works in the folder.
    """
    file = out / "sweep.json"
    with lock_folder(out, "sweep"):
        kept = sweep.model_copy(update={"fixed": redact(sweep.fixed)})
        if file.exists():
            _check_continuation(_read(file), kept, out)
        part = file.with_suffix(".part")
        part.write_text(kept.model_dump_json(indent=2) + "\n", encoding="utf-8")
        part.replace(file)
        yield


def _read(file: Path) -> Sweep:
    try:
        return Sweep.model_validate_json(file.read_text(encoding="utf-8"))
    except ValidationError:
        raise SettingError(f"{file} is not a sweep that can be continued: move it away") from None


def _check_continuation(before: Sweep, now: Sweep, out: Path) -> None:
    old, new = ({"notebook": sweep.notebook, **sweep.fixed} for sweep in (before, now))
    for name in old.keys() | new.keys():
        if name not in (*before.grid, *now.grid) and old.get(name) != new.get(name):
            raise SettingError(
                f"{name} is {new.get(name)!r}, but {old.get(name)!r} in the sweep in {out}: give "
                "another --runs"
            )
    run_ids = {cell.run_id for cell in now.cells()}
    lost = [cell for cell in before.cells() if cell.run_id not in run_ids]
    if lost:
        raise SettingError(
            f"--grid lacks {len(lost)} cells of the sweep in {out}, such as {lost[0]}: only add "
            "values or repeats, or give another --runs"
        )


def run_sweep(
    sweep: Sweep,
    out: Path,
    *,
    run: Callable[[Cell], object],
    clock: Callable[[], float],
    notify: Callable[[str], None],
) -> bool:
    """Run every cell that is not done. A cell that fails does not stop the others.

    Args:
        sweep: The sweep.
        out: Its folder.
        run: Runs one cell into `out / cell.run_id`.
        clock: Returns seconds, for the time left.
        notify: Receives lines about the progress.

    Returns:
        Whether all cells are done.
    """
    cells, errors, durations = sweep.cells(), dict[str, str](), list[float]()
    todo = [cell for cell in cells if not cell.is_done(out)]
    for cell in cells:
        if cell not in todo:
            notify(f"skipped, already done: {cell}")
    for index, cell in enumerate(todo):
        left = _time_left(durations, len(todo) - index)
        notify(f"[{cells.index(cell) + 1}/{len(cells)}] {cell}{left}")
        start, error = clock(), _attempt(run, out, cell)
        if error is None:
            durations.append(clock() - start)
        else:
            errors[cell.run_id] = error
            notify(f"failed: {error}")
        write_results(out, cells, errors)
    write_results(out, cells, errors)
    return all(cell.is_done(out) for cell in cells) and not errors


def _attempt(run: Callable[[Cell], object], out: Path, cell: Cell) -> str | None:
    """Run one cell and return its error. The folder of an interrupted run is moved away first."""
    folder, aside = out / cell.run_id, out / INTERRUPTED / cell.run_id
    if folder.exists():
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(exist_ok=True)
        folder.replace(aside)
    try:
        run(cell)
    except WorkbenchError as error:
        return str(error)
    return None if cell.is_done(out) else f"it ended without writing {folder / 'summary.json'}"


def _time_left(durations: Sequence[float], cells: int) -> str:
    if not durations:
        return ""
    seconds = sum(durations) / len(durations) * cells
    return f" (about {rough_duration(seconds)} left)"
