"""Compare saved runs: what differs between them, and by how much. It needs no cluster.

A comparison is paired: the first run of the baseline with the first of the candidate, and so on.
What both runs of a pair have in common (seed, time of day, state of the machine) cancels out in
the ratio.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.analysis.paired_ratio import ComparedFigure, compare_figure
from workbench.errors import RunError, SettingError
from workbench.metrics.health import ClientHealth
from workbench.metrics.registry import COUNTS, RATES, compared_figures, find_metric
from workbench.runs.run import Run

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from workbench.metrics.summary import Summary

DEFAULT_FIGURES = (*RATES, "failed", "shed", *compared_figures("p50", "p99"))
_NEWEST = 6
_SHOWN_REASONS = 2
_HINT = "`python -m workbench run 01 -p seed 1` makes one"


def find_runs(root: str | Path, *, notebook: str | None = None, finished: bool = True) -> list[Run]:
    """Return the runs at or below `root`, at any depth, by date.

    A run with a file that cannot be read is left out with a warning. Other files are ignored.

    Args:
        root: The folder to search.
        notebook: Return only the runs of this notebook, given by name or by number ("01").
        finished: Return only the runs with a summary.
    """
    runs = []
    for file in Path(root).rglob("experiment.json"):
        try:
            run = Run.open(file.parent)
            whole = isinstance(run.document.get("experiment"), dict)
            if whole and {"run_id", "date"} <= run.document.keys():
                runs += [run] if not finished or run.summary() is not None else []
        except RunError as problem:
            warnings.warn(f"left out: {problem}", stacklevel=2)
    if notebook is not None:
        runs = [run for run in runs if f"{_notebook(run)}_".startswith(f"{notebook}_")]
    return sorted(runs, key=lambda run: (str(run.document["date"]), str(run.path)))


def pick_sides(root: str | Path, baseline: str, candidate: str) -> tuple[list[Run], list[Run]]:
    """Return the runs of the baseline and of the candidate.

    Args:
        root: The folder that contains the runs.
        baseline: Run ids, or folders of runs below `root`, separated by commas. If both sides are
            empty, the six newest finished runs (or as many as there are) are compared, with the
            older half as the baseline.
        candidate: The same for the other side.

    Raises:
        SettingError: If there are fewer than two finished runs, a name matches none of them, or
            only one side is given.
    """
    runs = find_runs(root)
    if len(runs) < 2:
        raise SettingError(
            f"run_root {root} has {len(runs)} finished runs, at least 2 are needed: {_HINT}"
        )
    if bool(baseline.strip()) != bool(candidate.strip()):
        raise SettingError(
            f"baseline is {baseline!r} and candidate is {candidate!r}: name both, or neither"
        )
    if not baseline.strip():
        half = min(len(runs), _NEWEST) // 2
        return runs[-2 * half : -half], runs[-half:]
    return _named(root, runs, baseline), _named(root, runs, candidate)


def runs_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Return counts, rates, latencies in ms and the client's health, one row per run."""
    import pandas as pd

    names = [*COUNTS, *RATES, *compared_figures("p50", "p95", "p99")]
    headers = [f"{name} ({find_metric(name).unit})" if name in RATES else name for name in names]
    rows = []
    for run in runs:
        summary = run.summary()
        figures = [None if summary is None else summary.figure(name) for name in names]
        verdict = "not finished" if summary is None else summary.client_health.verdict
        rows.append([run.run_id, run.document["date"], _notebook(run), *figures, verdict])
    table = pd.DataFrame(rows, columns=["run_id", "date", "notebook", *headers, "client"])
    kinds = {header: "Int64" if header in COUNTS else "float64" for header in headers}
    table = table.astype(kinds)
    table.attrs["client_health"] = runs_health(runs).model_dump(mode="json")
    return table


def differing_parameters(runs: Sequence[Run]) -> pd.DataFrame:
    """Return the parameters, versions and hardware that differ: one row each, one column per run.

    Rows are named as in `experiment.json` ("experiment.load.rate"). An absent value is None.
    """
    import pandas as pd

    parts = ("experiment", "versions", "hardware")
    documents = [dict(_flat({part: run.document.get(part, {}) for part in parts})) for run in runs]
    names = list(dict.fromkeys(name for document in documents for name in document))
    rows = {name: [document.get(name) for document in documents] for name in names}
    differing = {name: row for name, row in rows.items() if any(_differ(row[0], v) for v in row)}
    return pd.DataFrame(
        list(differing.values()),
        index=pd.Index(list(differing), name="parameter"),
        columns=[run.run_id for run in runs],
        dtype=object,
    )


def compare_runs(
    baseline: Sequence[Run],
    candidate: Sequence[Run],
    figures: Sequence[str] = DEFAULT_FIGURES,
    *,
    rng: np.random.Generator,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Compare the runs of a candidate with those of a baseline, pair by pair.

    Returns:
        One row per figure: unit, means of both sides, ratio, low, high, repeats, verdict. `ratio`
        is the geometric mean of candidate over baseline, and `low` to `high` its bootstrap
        interval (`workbench.metrics.bootstrap.paired_ratios`). The verdict is "better" or "worse"
        only if the whole interval is on one side of 1. A figure that is zero in a run has no
        ratio; its verdict comes from the differences. A client-limited run marks every verdict.
        `attrs["client_health"]` has the combined health of the runs.

    Raises:
        SettingError: If the sides cannot be paired, or neither higher nor lower values of a figure
            are better.
        RunError: If a run is not finished.
    """
    import pandas as pd

    _check_sides(baseline, candidate, confidence)
    first, second = [_summary(run) for run in baseline], [_summary(run) for run in candidate]
    rows = [compare_figure(name, first, second, rng=rng, confidence=confidence) for name in figures]
    index = pd.Index(list(figures), name="figure")
    frame = pd.DataFrame(rows, index=index, columns=list(ComparedFigure._fields))
    health = runs_health([*baseline, *candidate])
    frame.attrs["client_health"] = health.model_dump(mode="json")
    if health.client_limited:
        frame["verdict"] += " (client limited)"
    return frame


def runs_health(runs: Sequence[Run]) -> ClientHealth:
    """Return the combined health of the finished runs, with the reasons of at most two."""
    finished = [(run.run_id, summary) for run in runs if (summary := run.summary()) is not None]
    health = ClientHealth.combine(
        summary.client_health.labelled(run_id) for run_id, summary in finished
    )
    hidden = len(health.reasons) - _SHOWN_REASONS
    if hidden <= 0:
        return health
    reasons = (*health.reasons[:_SHOWN_REASONS], f"and {hidden} more runs")
    return health.model_copy(update={"reasons": reasons})


def _check_sides(baseline: Sequence[Run], candidate: Sequence[Run], confidence: float) -> None:
    for name, side in (("baseline", baseline), ("candidate", candidate)):
        if not side:
            raise SettingError(f"{name} has no run: give at least one; {_HINT}")
    if len(baseline) != len(candidate):
        raise SettingError(
            f"baseline has {len(baseline)} runs and candidate has {len(candidate)}: pairs need the "
            "same number on both sides; leave some out"
        )
    paths = [run.path.resolve() for run in (*baseline, *candidate)]
    if repeated := sorted({path.name for path in paths if paths.count(path) > 1}):
        # A run paired with itself, or counted twice, would produce an interval without evidence.
        raise SettingError(f"run {repeated[0]!r} is given more than once: give separate runs")
    if not 0 < confidence < 1:
        raise SettingError(f"confidence must be between 0 and 1, such as 0.95, got {confidence}")


def _named(root: str | Path, runs: Sequence[Run], names: str) -> list[Run]:
    """Return the runs with comma-separated names, in that order; those of a folder by date."""
    named: list[Run] = []
    for name in filter(None, map(str.strip, names.split(","))):
        matches = [run for run in runs if run.run_id == name] or find_runs(Path(root) / name)
        if not matches:
            close = get_close_matches(name, [run.run_id for run in runs], n=1, cutoff=0.4)
            hint = f"Did you mean {close[0]!r}?" if close else f"The newest is {runs[-1].run_id!r}."
            raise SettingError(
                f"{name!r} is neither a finished run nor a folder with one in {root}. {hint}"
            )
        named += matches
    return named


def _notebook(run: Run) -> str:
    return str(run.experiment.get("notebook") or "")


def _summary(run: Run) -> Summary:
    summary = run.summary()
    if summary is None:
        raise RunError(f"{run.path} is not finished, it has no summary.json: leave it out")
    return summary


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from _flat(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner


def _differ(a: Any, b: Any) -> bool:
    # 1 equals True in Python, but a flag and a number are different settings.
    return bool(a != b) or isinstance(a, bool) != isinstance(b, bool)
