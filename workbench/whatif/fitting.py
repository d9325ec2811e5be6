"""Fit the constants of a replica to the requests of a few runs, by least squares."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import SettingError
from workbench.records import ReplicaSample, RequestRecord
from workbench.whatif.calibration import VERSIONS_THAT_MATTER, Calibration, Fit, Span
from workbench.whatif.observations import CONSTANTS, Observations, observe, starts_and_stops

if TYPE_CHECKING:
    from workbench.runs.run import Run
    from workbench.whatif.state import Floats

ENOUGH_POINTS = 50
GOOD_R_SQUARED = 0.9
GOOD_ERROR = 0.15
DISTINCT = 1e-3
"""Smallest singular value, as a share of the largest, at which the constants are identifiable."""


def calibrate(
    runs: Iterable[Run],
    *,
    kv_blocks: int | None = None,
    block_size: int | None = None,
    max_num_batched_tokens: int | None = None,
    max_num_seqs: int | None = None,
) -> Calibration:
    """Return the constants that describe the requests of some runs best.

    The sum of the squared relative errors is smallest, and no constant is negative. What is wrong
    with the fit is in `marks`, which every simulation repeats.

    Args:
        runs: Runs of one model on one kind of device, with few and with many streams, short and
            long prompts and answers, as `calibration_loads` sends them. A run may have several
            replicas, if its records name them.
        kv_blocks: Blocks of the engine's KV cache. By default these limits of the engine are those
            that `calibration_loads` wrote into the runs.
        block_size: Tokens of a block.
        max_num_batched_tokens: Tokens that a step may process.
        max_num_seqs: Requests that a step may process.

    Raises:
        SettingError: The runs are of several models, devices or versions, have too few requests, or
            a limit of the engine is unknown.
    """
    given = list(runs)
    if not given:
        raise SettingError("runs is empty; pass the runs that calibration_loads returned")
    facts = _common_facts(given)
    limits = {
        "kv_blocks": kv_blocks,
        "block_size": block_size,
        "max_num_batched_tokens": max_num_batched_tokens,
        "max_num_seqs": max_num_seqs,
    }
    engine = _engine_limits(given, limits)
    records = [_completed(run) for run in given]
    observed = Observations.joined(
        [
            observe(group, engine["max_num_batched_tokens"])
            for run, found in zip(given, records, strict=True)
            for group in _by_replica(run, found)
        ]
    )
    constants, fit = _fit(observed)
    everything = [record for found in records for record in found]
    start_s, stop_s = starts_and_stops(given)
    return Calibration(
        **facts,
        **engine,
        **constants,
        fit=fit,
        seen=_seen(everything, records),
        marks=tuple(_marks(observed, fit)),
        start_s=start_s,
        stop_s=stop_s,
    )


def _common_facts(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the model, the device and the versions that all runs have in common."""
    models = {record.model for run in runs for record in run.records() if record.status == "ok"}
    devices = {_device(run.document.get("hardware") or {}) for run in runs}
    versions: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        for package, version in (run.document.get("versions") or {}).items():
            versions[package].add(version)
    _check_one("models", {str(model) for model in models})
    _check_one("devices", devices)
    for package in VERSIONS_THAT_MATTER:
        _check_one(f"versions of {package}", versions.get(package, set()))
    return {
        "model": str(next(iter(models), None)),
        "device": devices.pop(),
        "hardware": runs[0].document.get("hardware") or {},
        "versions": runs[0].document.get("versions") or {},
    }


def _device(hardware: Mapping[str, Any]) -> str:
    gpus = hardware.get("gpus") or []
    return str(gpus[0]).split(",")[0] if gpus else str(hardware.get("cpu", "unknown"))


def _check_one(what: str, found: set[str]) -> None:
    if len(found) > 1:
        raise SettingError(
            f"runs must be of one kind, got several {what}: {', '.join(sorted(found))}; "
            "calibrate each of them by itself"
        )


def _engine_limits(runs: Sequence[Run], given: Mapping[str, int | None]) -> dict[str, int]:
    limits: dict[str, int] = {}
    for name, value in given.items():
        known = {
            int(own[name]) for run in runs if name in (own := run.experiment.get("engine", {}))
        }
        _check_one(name, {str(number) for number in known})
        limit = value if value is not None else next(iter(known), None)
        if limit is None:
            raise SettingError(
                f"{name} is missing: no run names it; give it, or make the runs with "
                "wb.whatif.calibration_loads"
            )
        limits[name] = limit
    return limits


def _completed(run: Run) -> list[RequestRecord]:
    found = [
        record
        for record in run.records()
        if record.status == "ok"
        and record.sent_s is not None
        and record.prompt_tokens
        and record.output_tokens
        and record.token_times_s
    ]
    if not found:
        raise SettingError(
            f"run {run.run_id} has no completed request with token times and token counts; "
            "leave it out"
        )
    return found


def _by_replica(run: Run, records: Sequence[RequestRecord]) -> list[list[RequestRecord]]:
    groups: dict[str | None, list[RequestRecord]] = defaultdict(list)
    for record in records:
        groups[record.replica].append(record)
    several = {sample.replica for sample in run.samples() if isinstance(sample, ReplicaSample)}
    if None in groups and len(several) > 1:
        raise SettingError(
            f"run {run.run_id} has {len(several)} replicas, but its records do not name the "
            "replica that answered; make the run with one replica"
        )
    return list(groups.values())


def _fit(observed: Observations) -> tuple[dict[str, float], Fit]:
    from scipy.optimize import nnls

    seconds = observed.seconds
    if len(seconds) < len(CONSTANTS):
        raise SettingError(
            f"runs must give at least {len(CONSTANTS)} measured times, got {len(seconds)}; "
            "make longer runs"
        )
    relative, scale = _scaled(observed)
    solution, _ = nnls(relative / scale, observed.weights)
    constants = solution / scale
    predicted = observed.rows @ constants
    spread = float(((seconds - seconds.mean()) ** 2).sum())
    left = float(((seconds - predicted) ** 2).sum())
    fit = Fit(
        points=len(seconds),
        r_squared=1 - left / spread if spread else 0.0,
        median_error=float(np.median(np.abs(predicted - seconds) / seconds)),
    )
    return dict(zip(CONSTANTS, constants.tolist(), strict=True)), fit


def _scaled(observed: Observations) -> tuple[Floats, Floats]:
    """Return the equations of weighted relative errors, and the length of each column."""
    relative = observed.rows * (observed.weights / observed.seconds)[:, None]
    scale = np.sqrt((relative**2).sum(axis=0))
    scale[scale == 0] = 1.0
    return relative, scale


def _marks(observed: Observations, fit: Fit) -> list[str]:
    marks = []
    if fit.points < ENOUGH_POINTS:
        marks.append(f"the fit has {fit.points} points, fewer than {ENOUGH_POINTS}")
    if fit.r_squared < GOOD_R_SQUARED:
        marks.append(f"the fit is poor: r squared is {fit.r_squared:.2f}, below {GOOD_R_SQUARED}")
    if fit.median_error > GOOD_ERROR:
        marks.append(
            f"the fit is poor: the median error is {fit.median_error:.0%}, above {GOOD_ERROR:.0%}"
        )
    relative, scale = _scaled(observed)
    _, singular, directions = np.linalg.svd(relative / scale, full_matrices=False)
    for value, direction in zip(singular, directions, strict=True):
        if value < DISTINCT * singular[0]:
            names = [
                name for name, part in zip(CONSTANTS, direction, strict=True) if abs(part) > 0.3
            ]
            marks.append(
                f"the runs do not determine {' and '.join(names)} separately: vary the loads more"
            )
    return marks


def _seen(
    records: Sequence[RequestRecord], by_run: Sequence[Sequence[RequestRecord]]
) -> dict[str, Span]:
    prompts = [record.prompt_tokens or 0 for record in records]
    outputs = [record.output_tokens or 0 for record in records]
    return {
        "prompt_tokens": Span(low=min(prompts), high=max(prompts)),
        "output_tokens": Span(low=min(outputs), high=max(outputs)),
        "running": Span(low=0, high=max(_most_at_once(found) for found in by_run)),
    }


def _most_at_once(records: Sequence[RequestRecord]) -> int:
    """Return the largest batch of a replica: requests between their first and last token."""
    most = 0
    for replica in {record.replica for record in records}:
        own = [record for record in records if record.replica == replica]
        changes = [(record.token_times_s[0], 1) for record in own]
        changes += [(record.token_times_s[-1], -1) for record in own]
        most = max(most, int(np.cumsum([step for _, step in sorted(changes)]).max()))
    return max(most, 1)
