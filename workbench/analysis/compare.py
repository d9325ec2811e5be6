"""Saved runs side by side: what differs between them, and by how much. Needs no cluster.

A comparison is paired: the first run of the baseline with the first of the candidate, and so on,
so that what both have in common (the seed, the hour, the machine's mood) falls out of the ratio.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import RunError, SettingError
from workbench.runs.run import Run

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from workbench.metrics.bootstrap import Interval
    from workbench.metrics.summary import Summary

    Pairs = list[tuple[float, float]]

UNITS = {
    "request_throughput": "requests/s",
    "output_throughput": "tokens/s",
    "request_goodput": "requests/s",
    "slo_attainment": "share",
}
_BY_SLO = ("request_goodput", "slo_attainment")
_MORE_IS_BETTER = (*UNITS, "total_token_throughput", "completed")
_COUNTS = ("completed", "failed", "shed")
_LATENCIES = [f"{p}_{name}_ms" for name in ("ttft", "tpot", "e2el") for p in ("p50", "p95", "p99")]
FIGURES = (*UNITS, "failed", "shed", *(name for name in _LATENCIES if "p95" not in name))
_REPEATS, _NEWEST = 3, 6
_HOW = "`python -m workbench run 01 -p seed 1` makes one"


def find_runs(root: str | Path, *, notebook: str | None = None, finished: bool = True) -> list[Run]:
    """The runs at or below `root`, at any depth, by date; what is no run is left out.

    `notebook` keeps those of one notebook, by its name or number ("01"). `finished` keeps those
    with a summary. A run with a file that cannot be read is left out with a warning.
    """
    found = []
    for file in Path(root).rglob("experiment.json"):
        try:
            run = Run.open(file.parent)
            whole = isinstance(run.document.get("experiment"), dict)
            if whole and {"run_id", "date"} <= run.document.keys():
                found += [run] if not finished or run.summary() is not None else []
        except RunError as problem:
            warnings.warn(f"left out: {problem}", stacklevel=2)
    if notebook is not None:
        found = [r for r in found if f"{_notebook(r)}_".startswith(f"{notebook}_")]
    return sorted(found, key=lambda run: (str(run.document["date"]), str(run.path)))


def pick_sides(root: str | Path, baseline: str, candidate: str) -> tuple[list[Run], list[Run]]:
    """The runs named on each side: run ids, or folders of runs below `root`, with commas between.

    Both empty: the six newest finished runs, or as many as there are, the older half as the
    baseline. Raises SettingError for fewer than two finished runs, a name that is none of them,
    and one side without the other.
    """
    runs = find_runs(root)
    if len(runs) < 2:
        raise SettingError(f"run_root {root} has {len(runs)} finished runs, of 2 needed: {_HOW}")
    if bool(baseline.strip()) != bool(candidate.strip()):
        raise SettingError(
            f"baseline is {baseline!r} and candidate {candidate!r}: name both, or neither"
        )
    if not baseline.strip():
        half = min(len(runs), _NEWEST) // 2
        return runs[-2 * half : -half], runs[-half:]
    return _named(root, runs, baseline), _named(root, runs, candidate)


def runs_table(runs: Sequence[Run]) -> pd.DataFrame:
    """A row a run, with its counts, rates, latencies in ms and the verdict on its client."""
    import pandas as pd

    names = [*_COUNTS, *UNITS, *_LATENCIES]
    headers = [f"{name} ({UNITS[name]})" if name in UNITS else name for name in names]
    rows = []
    for run in runs:
        summary = run.summary()
        figures = [None if summary is None else summary.figure(name) for name in names]
        verdict = "not finished" if summary is None else summary.client_health.verdict
        rows.append([run.run_id, run.document["date"], _notebook(run), *figures, verdict])
    table = pd.DataFrame(rows, columns=["run_id", "date", "notebook", *headers, "client"])
    kinds = {header: "Int64" if header in _COUNTS else "float64" for header in headers}
    table = table.astype(kinds)
    table.attrs["client_health"] = _client_health(runs)
    return table


def differing_parameters(runs: Sequence[Run]) -> pd.DataFrame:
    """The parameters, versions and hardware that differ: a row each, a column a run.

    Rows are named as in `experiment.json` ("experiment.load.rate"); None is absent.
    """
    import pandas as pd

    parts = ("experiment", "versions", "hardware")
    flat = [dict(_flat({part: run.document.get(part, {}) for part in parts})) for run in runs]
    names = list(dict.fromkeys(name for one in flat for name in one))
    rows = {name: [one.get(name) for one in flat] for name in names}
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
    figures: Sequence[str] = FIGURES,
    *,
    rng: np.random.Generator,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """A row a figure: unit, means of both sides, ratio, low, high, repeats, verdict in words.

    `ratio` is the geometric mean of candidate over baseline, pair by pair, and `low` to `high` its
    bootstrap interval (`workbench.metrics.bootstrap.paired_ratios`). The verdict is better or
    worse only
    where the interval is all on one side of 1. A figure that is zero somewhere has no ratio; its
    verdict comes from the differences. A client-limited run marks every verdict, and
    `attrs["client_health"]`.

    Raises SettingError for sides that make no pairs and for a figure that has no better direction,
    RunError for a run that is not finished.
    """
    import pandas as pd

    _refuse(baseline, candidate, confidence)
    first, second = [_summary(run) for run in baseline], [_summary(run) for run in candidate]
    rows = [_compared(name, first, second, rng, confidence) for name in figures]
    names = ["unit", "baseline", "candidate", "ratio", "low", "high", "repeats", "verdict"]
    frame = pd.DataFrame(rows, index=pd.Index(list(figures), name="figure"), columns=names)
    frame.attrs["client_health"] = health = _client_health([*baseline, *candidate])
    if health["client_limited"]:
        frame["verdict"] += " (client limited)"
    return frame


def _refuse(baseline: Sequence[Run], candidate: Sequence[Run], confidence: float) -> None:
    for name, side in (("baseline", baseline), ("candidate", candidate)):
        if not side:
            raise SettingError(f"{name} has no run: give at least one; {_HOW}")
    if len(baseline) != len(candidate):
        raise SettingError(
            f"baseline has {len(baseline)} runs and candidate {len(candidate)}: pairs need as many "
            "on each side; leave some out"
        )
    paths = [run.path.resolve() for run in (*baseline, *candidate)]
    if twice := sorted({path.name for path in paths if paths.count(path) > 1}):
        # A run paired with itself, or counted thrice, would make an interval out of nothing.
        raise SettingError(f"run {twice[0]!r} is given more than once: repeats are separate runs")
    if not 0 < confidence < 1:
        raise SettingError(f"confidence is {confidence}: give a share between 0 and 1, as 0.95")


def _compared(
    name: str,
    first: Sequence[Summary],
    second: Sequence[Summary],
    rng: np.random.Generator,
    confidence: float,
) -> list[Any]:
    values = [[summary.figure(name) for summary in side] for side in (first, second)]
    unit, up = _unit_and_direction(name)
    means = [None if None in side else sum(v or 0 for v in side) / len(side) for side in values]
    pairs = [(a, b) for a, b in zip(*values, strict=True) if a is not None and b is not None]
    bounds = {str(summary.slo and summary.slo.bounds()) for summary in (*first, *second)}
    n, nothing = len(first), [math.nan] * 3
    if len(pairs) < n:
        return [unit, *means, *nothing, n, "not compared: absent in a run"]
    if name in _BY_SLO and len(bounds) > 1:
        return [unit, *means, *nothing, n, "not compared: the SLOs differ"]
    ratio = _ratio(name, first, second, pairs, rng, confidence)
    return [unit, *means, *ratio[:3], n, _verdict(pairs, ratio, up, rng, confidence)]


def _unit_and_direction(name: str) -> tuple[str, bool]:
    """The unit of a figure, and whether more of it is better."""
    up = name in _MORE_IS_BETTER
    if not up and name not in _COUNTS and not name.endswith("_ms"):
        raise SettingError(
            f"figures has {name!r}, of which neither more nor less is better: give a throughput, "
            "goodput, attainment, count or latency"
        )
    if name.endswith("_ms"):
        return "ms", up
    return UNITS.get(name) or ("requests" if name in _COUNTS else "tokens/s"), up


def _ratio(
    name: str,
    first: Sequence[Summary],
    second: Sequence[Summary],
    pairs: Pairs,
    rng: np.random.Generator,
    confidence: float,
) -> Interval:
    """NaN for the bounds of fewer than 3 pairs, and for all where one of the values is zero."""
    from workbench.metrics.bootstrap import Interval, paired_ratios

    n, nan = len(pairs), math.nan
    if not all(a and b for a, b in pairs):
        return Interval(nan, nan, nan, n)
    if n < _REPEATS:
        return Interval(math.exp(sum(math.log(b / a) for a, b in pairs) / n), nan, nan, n)
    return paired_ratios(first, second, name, rng=rng, confidence=confidence)


def _verdict(
    pairs: Pairs, ratio: Interval, up: bool, rng: np.random.Generator, confidence: float
) -> str:
    from workbench.metrics.bootstrap import bootstrap

    if len(pairs) < _REPEATS:
        return f"too few repeats: {len(pairs)} of {_REPEATS}"
    low, high, same = ratio.low, ratio.high, 1.0
    if math.isnan(low):
        differences = bootstrap([b - a for a, b in pairs], rng=rng, confidence=confidence)
        low, high, same = differences.low, differences.high, 0.0
    if low <= same <= high:
        return "no difference shown"
    return "better" if (low > same) == up else "worse"


def _named(root: str | Path, runs: Sequence[Run], names: str) -> list[Run]:
    """The runs of comma-separated names, in the order given; those of a folder by date."""
    found: list[Run] = []
    for name in filter(None, map(str.strip, names.split(","))):
        known = [run for run in runs if run.run_id == name] or find_runs(Path(root) / name)
        if not known:
            close = get_close_matches(name, [run.run_id for run in runs], n=1, cutoff=0.4)
            hint = f"Did you mean {close[0]!r}?" if close else f"The newest is {runs[-1].run_id!r}."
            raise SettingError(
                f"{name!r} is no finished run and no folder of any in {root}. {hint}"
            )
        found += known
    return found


def _notebook(run: Run) -> str:
    return str(run.experiment.get("notebook") or "")


def _summary(run: Run) -> Summary:
    summary = run.summary()
    if summary is None:
        raise RunError(f"{run.path} is not finished, it has no summary.json: leave it out")
    return summary


def _client_health(runs: Sequence[Run]) -> dict[str, Any]:
    """The verdict over all runs, in the form that `workbench.figures.style.titled` shows."""
    health = {run: s.client_health for run in runs if (s := run.summary()) is not None}
    limited = {run: h for run, h in health.items() if h.client_limited}
    reasons = [f"{run.run_id}: {', '.join(h.reasons)}" for run, h in limited.items()]
    more = [f"and {len(reasons) - 2} more runs"] if len(reasons) > 2 else []
    measured = any(h.client_limited is not None for h in health.values())
    return {
        "client_limited": bool(limited) if measured else None,
        "reasons": [*reasons[:2], *more],
        "limited_runs": [run.run_id for run in limited],
    }


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from _flat(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner


def _differ(a: Any, b: Any) -> bool:
    # 1 equals True in Python; a flag and a number are not the same setting.
    return bool(a != b) or isinstance(a, bool) != isinstance(b, bool)
