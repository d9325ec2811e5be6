"""Tune an engine: choose, deploy and measure configurations within a budget, and continue later."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.quantities import rough_duration
from workbench.tuning.checks import check_configurations, check_numbers, check_service
from workbench.tuning.configurations import (
    Configuration,
    Settings,
    check_settings,
    make_configurations,
    supported_settings,
)
from workbench.tuning.forecast import Forecast
from workbench.tuning.halving import Rung, rung_sizes, successive_halving
from workbench.tuning.measurement import Measurement, Open
from workbench.tuning.result import TuningResult
from workbench.tuning.store import Problem, Store, open_store
from workbench.tuning.trial import Trial
from workbench.workload.arrivals import ClosedLoop

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from serving.spec.service import ServiceSpec
    from workbench.metrics.slo import SLO
    from workbench.workload.spec import LoadSpec


async def tune_engine(
    spec: ServiceSpec,
    settings: Settings,
    load: LoadSpec,
    slo: SLO,
    *,
    open: Open,
    folder: str | Path,
    loads: Sequence[float] = (),
    eta: int = 3,
    repeats: int = 3,
    max_configurations: int | None = None,
    budget_min: float | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = print,
) -> TuningResult:
    """Find the engine arguments with the highest goodput within an SLO, by successive halving.

    All combinations of `settings` are deployed one after another and measured briefly. The best
    1/`eta` of them are measured again, `eta` times as long, and so on until at most `eta` are left.
    The default is measured in every rung. A combination that does not start is a result, with the
    reason. The service of the last combination still runs at the end.

    Called again with the same arguments, it continues: finished trials are read from `folder`.

    Args:
        spec: The service, with a single model.
        settings: The values to try of each engine argument, by vLLM's name. The first value is the
            default; None is the value in `spec`, or vLLM's own.
        load: The load of the first rung, with `duration_s`, `count` or both.
        slo: The bounds of a good request, and the share of requests that must be good.
        open: Deploys a specification in place of the one before, such as `Session.open`.
        folder: The folder that keeps the tuning.
        loads: The rates of `load`, or the concurrencies of a closed loop, to try; empty: `load` as
            it is. The load with the highest goodput that meets the SLO counts.
        eta: 1/`eta` of the configurations of a rung go on to the next.
        repeats: Repeats of each load, at least 3 for an interval.
        max_configurations: If there are more combinations, the default and a random choice of the
            others are tried.
        budget_min: Minutes of this call. No deployment begins that would exceed them.
        seed: Seed of the choice and of the bootstrap.
        progress: Receives a line before and after each trial.

    Raises:
        SettingError: A value is invalid, nothing is left to compare, or the tuning in `folder`
            compares something else. Nothing was deployed.
        SpecError: vLLM has no such argument, or the value has the wrong type. Nothing was deployed.
        RunError: Another process works in `folder`.
    """
    import numpy as np

    check_service(spec)
    check_settings(settings)
    kept, left_out = supported_settings(settings, spec.model.accelerator)
    check_numbers(load, loads, eta, repeats, budget_min)
    rng = np.random.default_rng(seed)
    configurations = make_configurations(kept, limit=max_configurations, rng=rng)
    check_configurations(spec, kept, configurations)
    problem = Problem(
        model=spec.model.model_dump(mode="json"),
        settings=kept,
        max_configurations=max_configurations,
        load=load.model_dump(mode="json"),
        loads=list(loads),
        slo=slo.model_dump(mode="json", exclude_none=True),
        eta=eta,
        repeats=repeats,
        seed=seed,
    )
    for message in left_out:
        progress(message)
    with open_store(Path(folder), problem) as store:
        measurement = Measurement(
            spec=spec,
            load=load,
            loads=loads,
            slo=slo,
            repeats=repeats,
            eta=eta,
            open=open,
            runs=store.runs,
        )
        rungs, complete = await run_trials(
            configurations, eta, measurement, store=store, budget_min=budget_min, notify=progress
        )
    model = spec.model
    workers = model.workers * model.data_parallel_size * model.scaling.max_replicas
    gpus = math.ceil(workers * (model.num_gpus or 1))
    return TuningResult(
        rungs=tuple(rungs),
        complete=complete,
        unit="concurrent requests" if isinstance(load.arrivals, ClosedLoop) else "requests/s",
        gpus=gpus if model.accelerator == "gpu" else None,
        seed=seed,
        left_out=tuple(left_out),
    )


async def run_trials(
    configurations: Sequence[Configuration],
    eta: int,
    measure: Callable[[Configuration, int], Awaitable[Trial]],
    *,
    store: Store,
    budget_min: float | None = None,
    notify: Callable[[str], None] = print,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[list[Rung], bool]:
    """Run successive halving with trials that are kept in `store`.

    Args:
        configurations: The default, and the others.
        eta: The share of a rung that goes on is 1/`eta`.
        measure: Measures a configuration at a rung.
        store: The finished trials.
        budget_min: Minutes of this call.
        notify: Receives lines about the progress.
        clock: Returns seconds.

    Returns:
        The rungs that were begun, and whether the search came to its end.
    """
    forecast = Forecast(rung_sizes(len(configurations), eta), eta)
    end_s = math.inf if budget_min is None else clock() + 60 * budget_min
    stopped = False

    async def run_trial(configuration: Configuration, rung: int) -> Trial | None:
        nonlocal stopped
        known = store.read(configuration, rung)
        if known is not None:
            notify(f"{forecast.position(rung)} already measured: {configuration}")
            forecast.add(known)
            return known
        needed_s = forecast.trial_s(rung)
        if clock() + (needed_s or 0.0) > end_s:
            stopped = True
            notify(
                f"stopped: the budget of {budget_min:g} min does not allow another deployment"
                + (f" of about {rough_duration(needed_s)}" if needed_s else "")
                + "; call again to continue"
            )
            return None
        notify(f"{forecast.position(rung)} {configuration}{forecast.rest()}")
        trial = await measure(configuration, rung)
        store.write(trial)
        forecast.add(trial)
        notify(f"    {_outcome(trial)}")
        return trial

    rungs = await successive_halving(configurations, eta=eta, run_trial=run_trial)
    return rungs, not stopped


def _outcome(trial: Trial) -> str:
    score = trial.score()
    if score is None:
        return f"failed: {trial.failure}"
    met = "met" if score.slo_met else "missed"
    return f"{score.mean:.3g} requests/s within the SLO, which it {met}"
