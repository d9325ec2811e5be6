"""Simulate one load under many settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

from serving.spec.scaling import ScalingSpec
from serving.spec.service import ServiceSpec
from workbench.errors import SettingError
from workbench.metrics.slo import SLO
from workbench.whatif.parallel import Parallel, run_parallel
from workbench.whatif.progress import make_progress
from workbench.whatif.simulator import simulate
from workbench.whatif.workload import Workload

if TYPE_CHECKING:
    import pandas as pd

    from workbench.cost.prices import Prices
    from workbench.whatif.calibration import Calibration
    from workbench.whatif.result import Simulation
    from workbench.workload.spec import LoadSpec
    from workbench.workload.trace_request import TraceRequest

FIGURES = (
    *("completed", "shed", "p50_ttft_ms", "p99_ttft_ms", "p99_e2el_ms", "mean_tpot_ms"),
    *("output_throughput", "slo_attainment"),
)
"""The figures of a summary that a sweep shows."""


def sweep(
    spec: ServiceSpec,
    load: LoadSpec | Workload | Iterable[TraceRequest],
    calibration: Calibration,
    grid: Mapping[str, Sequence[Any]],
    *,
    slo: SLO | None = None,
    prices: Prices | None = None,
    seed: int = 0,
    parallel: Parallel = "auto",
    progress: str | None = None,
) -> pd.DataFrame:
    """Return a row per setting: the setting, figures of the requests, replica-seconds and cost.

    Args:
        spec: The service; the grid replaces fields of its scaling.
        load: A load, the requests of a trace, or a `Workload`.
        calibration: The constants of a replica.
        grid: Values by field of `ScalingSpec`, such as `{"target_ongoing_requests": [1, 2, 4]}`;
            every combination is simulated.
        slo: The bounds for attainment.
        prices: Adds `cost_per_day`, in $.
        seed: The seed of every simulation.
        parallel: Where the settings are simulated at the same time: `"ray"`, the Ray cluster that
            this process is connected to; `"threads"`, the cores of this machine; `"auto"`, Ray if
            the cluster has several nodes, else threads; `"off"`, one after another. The table is
            the same.
        progress: `"bar"` for a person in a notebook, `"lines"` for a pipeline, None for neither.

    Returns:
        The rows in the order of the grid. The column `marks` names what makes a row doubtful, and
        is empty if nothing does.

    Raises:
        SettingError: A field does not exist, a combination is not valid, the load cannot be sent,
            or `parallel` is `"ray"` without a connection to a cluster.
    """
    import pandas as pd

    settings = combinations(grid)
    specs = [with_scaling(spec, setting) for setting in settings]
    length = spec.model.max_model_len or calibration.max_model_len
    workload = Workload.of(load, max_model_len=length)
    figures = partial(_figures_of, workload, calibration, slo=slo, prices=prices, seed=seed)
    with make_progress(progress, len(specs)) as shown:
        found = run_parallel(figures, specs, parallel, shown)
    rows = [setting | row for setting, row in zip(settings, found, strict=True)]
    return pd.DataFrame(rows)


def combinations(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return every combination of the values of a grid, the last field changing fastest.

    Raises:
        SettingError: A field is not one of `ScalingSpec`, or has no values.
    """
    for name, values in grid.items():
        if name not in ScalingSpec.model_fields:
            raise SettingError(
                f"grid must name fields of ScalingSpec, got {name!r}; the fields are "
                f"{', '.join(ScalingSpec.model_fields)}"
            )
        if not len(values):
            raise SettingError(f"grid must have at least one value of {name}, got none")
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def with_scaling(spec: ServiceSpec, fields: Mapping[str, Any]) -> ServiceSpec:
    """Return the service with other fields of its scaling.

    Raises:
        SpecError: The fields do not fit each other.
    """
    current = spec.model.scaling
    values = {name: getattr(current, name) for name in current.model_fields_set}
    scaling = ScalingSpec(**(values | dict(fields)))
    model = spec.model.model_copy(update={"scaling": scaling})
    return spec.model_copy(update={"model": model})


def _figures_of(
    workload: Workload,
    calibration: Calibration,
    spec: ServiceSpec,
    *,
    slo: SLO | None,
    prices: Prices | None,
    seed: int,
) -> dict[str, Any]:
    return _figures(
        simulate(spec, workload, calibration, seed=seed, token_times=False), slo, prices
    )


def _figures(simulation: Simulation, slo: SLO | None, prices: Prices | None) -> dict[str, Any]:
    summary = simulation.summary(slo)
    figures = {name: summary.figure(name) for name in FIGURES if slo or name != "slo_attainment"}
    figures["replica_seconds"] = simulation.replica_seconds().total
    figures["decisions"] = len(simulation.decisions())
    if prices is not None:
        figures["cost_per_day"] = simulation.cost_per_day(prices)
    return figures | {"marks": "; ".join(simulation.marks)}
