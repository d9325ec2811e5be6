r"""Error of the simulator on a real service: calibrate, predict, measure, compare.

A service of one replica is calibrated with `wb.whatif.calibration_loads`. Loads that the
calibration has not seen are predicted, and the predictions are written to disk, before any of them
is sent: other rates, longer prompts or answers, bursts, a ramp, a closed loop, a trace. Then the
service gets room for more replicas. A first load starts all of them and measures how long they take
to start and stop. A second one, predicted before as well, is scaled by the autoscaler.

`error_FIGURE` is the error of the median load, as a share of the measured value.
`replica_seconds_error` is that of the autoscaled load, `right_share` is the share of its seconds
with as many replicas as predicted, and `decision_error_s` the median error of the time of a
decision. `unmatched_decisions` counts those that were predicted or measured, but not both.

Files in the folder `--out`, where NAME is `--name`:

    NAME.json                    the calibration, for `wb.whatif.load_calibration`
    NAME-predictions.json        what was predicted of the loads, and when
    NAME-loads.json              the same with the measured figures and the errors
    NAME-fleet-predictions.json  what was predicted of the autoscaled load
    NAME-fleet.json              the same with the measured figures and the errors

On a CPU with the embedded model this takes about 11 minutes, with two cores for everything:

    python benchmarks/whatif_validation.py

On GPUs the parts can run by themselves, one card for `latency` and one per replica for `fleet`:

    python benchmarks/whatif_validation.py --accelerator gpu --source SHAPE --load-format dummy \
        --part latency --streams 64
    python benchmarks/whatif_validation.py --accelerator gpu --source SHAPE --load-format dummy \
        --part fleet --streams 64 --replicas 4
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from _report import Goal, report
from _vllm import add_model_arguments, model_spec, prepare
from _whatif_loads import Scaled, held_out_loads, scaled_load

import workbench as wb
from workbench.experiments.measure import measure
from workbench.whatif.calibration import Calibration
from workbench.whatif.comparison import FIGURES, ScalingComparison
from workbench.whatif.observations import starts_and_stops
from workbench.whatif.result import Simulation
from workbench.whatif.simulator import simulate
from workbench.whatif.workload import Workload
from workbench.workload.tokenizer import load_tokenizer

GOALS: dict[str, dict[str, float]] = {
    "cpu": {"mean_e2el_ms": 0.07, "p99_e2el_ms": 0.10, "mean_ttft_ms": 0.17, "mean_tpot_ms": 0.07},
    "gpu": {"mean_e2el_ms": 0.06, "p99_e2el_ms": 0.09, "mean_ttft_ms": 0.15, "mean_tpot_ms": 0.06},
}
"""The largest error of the median load, by figure."""

FLEET_GOALS: dict[str, Goal] = {
    "replica_seconds_error": {"max": 0.08},
    "right_share": {"min": 0.9},
}
START_MARGIN = 1.25
"""The peak of the autoscaled load lasts longer than the measured start of a replica, times this."""

AFTER_START_S = 30.0
MORE_REPLICAS_S = 900.0


def main() -> None:
    """Measure, print the tables, write the files, and print the result as the last line."""
    options = arguments()
    prepare()
    options.out.mkdir(parents=True, exist_ok=True)
    scaling = wb.ScalingSpec(max_replicas=1, max_ongoing_requests=options.max_ongoing)
    spec = wb.ServiceSpec(port=0, model=model_spec(options, scaling=scaling))
    with wb.deploy(spec) as endpoint:
        figures = asyncio.run(validate(endpoint, options))
    report("whatif_validation", figures, goals(figures, options.accelerator))


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser)
    parser.add_argument("--part", default="all", choices=["all", "latency", "fleet"])
    parser.add_argument("--name", help="name of the calibration (default: MODEL-DEVICE)")
    parser.add_argument("--calibration", type=Path, help="use this file, do not calibrate")
    parser.add_argument("--streams", type=int, default=16, help="streams of a busy replica (16)")
    parser.add_argument("--max-ongoing", type=int, default=64, help="max_ongoing_requests (64)")
    parser.add_argument("--seconds", type=float, default=20, help="duration of a load (20)")
    parser.add_argument("--replicas", type=int, default=2, help="of the autoscaled load (2)")
    parser.add_argument("--trace", type=Path, help="replay this trace; default: a new one")
    parser.add_argument("--trace-speed", type=float, help="speed of the replay (1)")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--runs", type=Path, default=Path("runs/whatif_validation"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/whatif"))
    options = parser.parse_args()
    if options.replicas < 2:
        parser.error(
            f"--replicas must be at least 2 for an autoscaled load, got {options.replicas}"
        )
    model = re.sub(r"\W+", "-", model_spec(options).model_id).lower()
    options.name = options.name or f"{model}-{options.accelerator}"
    if options.part == "fleet" and options.calibration is None:
        options.calibration = options.out / f"{options.name}.json"
    return options


def write(options: argparse.Namespace, kind: str, document: Any) -> None:
    """Write a file of results."""
    file = options.out / f"{options.name}-{kind}.json"
    file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"{kind:<18}{file}", flush=True)


async def validate(endpoint: wb.Endpoint, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of the benchmark."""
    root = options.runs / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    root.mkdir(parents=True)
    calibration = await calibrated(endpoint, options, root)
    figures: dict[str, Any] = {"device": calibration.device, "streams": options.streams}
    if calibration.fit:
        figures |= {
            "fit_points": calibration.fit.points,
            "fit_r_squared": round(calibration.fit.r_squared, 4),
            "fit_median_error": round(calibration.fit.median_error, 4),
        }
    if options.part != "fleet":
        figures |= median_errors(await validate_loads(endpoint, calibration, options, root))
    if options.part != "latency":
        figures |= await validate_fleet(endpoint, calibration, options, root)
    return figures


async def calibrated(endpoint: wb.Endpoint, options: argparse.Namespace, root: Path) -> Calibration:
    """Return the calibration of the file, or of the service."""
    if options.calibration:
        return wb.whatif.load_calibration(options.calibration)
    runs = await wb.whatif.calibration_loads(endpoint, root=root / "calibration")
    calibration = wb.whatif.calibrate(runs)
    save(calibration, options)
    print(json.dumps(calibration.model_dump(mode="json", exclude={"hardware", "versions"})))
    return calibration


def save(calibration: Calibration, options: argparse.Namespace) -> None:
    """Write the calibration next to the results."""
    print(f"calibration {calibration.save(options.out / f'{options.name}.json')}", flush=True)


def predict(
    endpoint: wb.Endpoint, load: wb.LoadSpec, calibration: Calibration, seed: int
) -> Simulation:
    """Simulate exactly the requests that the load generator will send."""
    assert isinstance(endpoint.spec, wb.ServiceSpec)
    model = endpoint.spec.model
    tokenizer = load_tokenizer(endpoint.tokenizer)
    workload = Workload.of(load, max_model_len=model.max_model_len, tokenizer=tokenizer)
    return simulate(endpoint.spec, workload, calibration, seed=seed)


def predicted_figures(simulation: Simulation) -> dict[str, Any]:
    """Return the predicted figures with what makes them doubtful."""
    summary = simulation.summary()
    return {
        "predicted_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "figures": {name: summary.figure(name) for name in (*FIGURES, "completed", "shed")},
        "marks": list(simulation.marks),
    }


async def validate_loads(
    endpoint: wb.Endpoint, calibration: Calibration, options: argparse.Namespace, root: Path
) -> dict[str, Any]:
    """Predict all loads, then measure each; return both and the errors by load."""
    assert isinstance(endpoint.spec, wb.ServiceSpec)
    loads = held_out_loads(
        endpoint.spec,
        calibration,
        streams=options.streams,
        seconds=options.seconds,
        seed=options.seed,
        trace=options.trace or root / "trace.csv",
        trace_speed=options.trace_speed,
    )
    simulations = {
        name: predict(endpoint, load, calibration, load.seed) for name, load in loads.items()
    }
    results: dict[str, Any] = {
        name: {"load": loads[name].model_dump(mode="json")} | predicted_figures(simulation)
        for name, simulation in simulations.items()
    }
    write(options, "predictions", results)
    for name, load in loads.items():
        results[name]["sent_at"] = datetime.now(UTC).isoformat(timespec="milliseconds")
        run = wb.Run.create(root / "loads", {"load": load.model_dump(mode="json")}, run_id=name)
        await measure(endpoint, load, run=run)
        table = wb.whatif.compare_requests(simulations[name], run)
        results[name] |= json.loads(table[["measured", "error"]].to_json())
        print(f"{name}\n{table.to_string(float_format='{:.4g}'.format)}", flush=True)
        for mark in simulations[name].marks:
            print(f"doubtful    {mark}")
    write(options, "loads", results)
    return results


def median_errors(results: dict[str, Any]) -> dict[str, float]:
    """Return the error of the median load by figure."""
    return {
        f"error_{name}": round(median(abs(load["error"][name]) for load in results.values()), 4)
        for name in FIGURES
    }


async def validate_fleet(
    endpoint: wb.Endpoint, calibration: Calibration, options: argparse.Namespace, root: Path
) -> dict[str, Any]:
    """Measure starts, then predict and measure an autoscaled load; return the errors."""
    assert isinstance(endpoint.spec, wb.ServiceSpec)
    fields = {"replicas": options.replicas, "streams": options.streams, "seed": options.seed + 100}
    scaled = scaled_load(endpoint.spec, calibration, peak_s=MORE_REPLICAS_S, **fields)
    endpoint.rescale(**scaled.scaling.model_dump(exclude={"initial_replicas"}))
    calibration = await with_starts(endpoint, calibration, scaled, options, root)
    save(calibration, options)
    peak_s = (
        scaled.scaling.upscale_delay_s + START_MARGIN * max(calibration.start_s) + AFTER_START_S
    )
    load = scaled_load(endpoint.spec, calibration, peak_s=peak_s, **fields).load
    simulation = predict(endpoint, load, calibration, options.seed)
    prediction = predicted_figures(simulation) | {
        "load": load.model_dump(mode="json"),
        "scaling": endpoint.spec.model.scaling.model_dump(mode="json"),
        "decisions": [
            [decision.time_s, decision.from_target, decision.to_target]
            for decision in simulation.decisions()
        ],
        "replica_seconds": simulation.replica_seconds().total,
    }
    write(options, "fleet-predictions", prediction)
    sent_at = datetime.now(UTC).isoformat(timespec="milliseconds")
    run = await measure_scaled(endpoint, load, root)
    scaling = wb.whatif.compare_scaling(simulation, run, endpoint.deployment)
    requests = wb.whatif.compare_requests(simulation, run)
    print(f"fleet\n{requests.to_string(float_format='{:.4g}'.format)}\n")
    print(f"{scaling.decisions.round(1).to_string(index=False)}", flush=True)
    figures = fleet_figures(scaling, options.replicas)
    measured = {
        "sent_at": sent_at,
        "requests": json.loads(requests[["measured", "error"]].to_json()),
        "decisions": json.loads(scaling.decisions.to_json(orient="records")),
        "errors": figures,
    }
    write(options, "fleet", prediction | measured)
    return figures


async def with_starts(
    endpoint: wb.Endpoint,
    calibration: Calibration,
    scaled: Scaled,
    options: argparse.Namespace,
    root: Path,
) -> Calibration:
    """Return the calibration with the measured times of starts and stops of replicas."""
    load = scaled.load.model_copy(
        update={
            "arrivals": wb.Poisson(rate=scaled.peak_rate),
            "duration_s": MORE_REPLICAS_S,
            "seed": options.seed + 200,
        }
    )
    run = wb.Run.create(root, {"load": load.model_dump(mode="json")}, run_id="starts")
    loading = wb.start_load(endpoint, load, run=run)
    with wb.Telemetry(endpoint, loading.clock, run.append_telemetry):
        await endpoint.wait_until_scaled(options.replicas)
        loading.stop()
        run.finish((await loading).summary())
        await endpoint.wait_until_scaled(1)
    start_s, stop_s = starts_and_stops([run])
    if not start_s:
        raise RuntimeError(f"{run.path}: telemetry saw no replica start")
    print(f"starts {start_s} s, stops {stop_s} s", flush=True)
    return calibration.model_copy(update={"start_s": start_s, "stop_s": stop_s})


async def measure_scaled(endpoint: wb.Endpoint, load: wb.LoadSpec, root: Path) -> wb.Run:
    """Send the autoscaled load, with telemetry until one replica is left."""
    run = wb.Run.create(root, {"load": load.model_dump(mode="json")}, run_id="fleet")
    loading = wb.start_load(endpoint, load, run=run)
    with wb.Telemetry(endpoint, loading.clock, run.append_telemetry):
        run.finish((await loading).summary())
        await endpoint.wait_until_scaled(1)
    return run


def fleet_figures(scaling: ScalingComparison, replicas: int) -> dict[str, Any]:
    """Return the errors of the autoscaled load."""
    errors = [abs(seconds) for seconds in scaling.decision_errors_s]
    return {
        "replicas": replicas,
        "replica_seconds_error": round(abs(scaling.replica_seconds_error), 4),
        "replica_seconds_predicted": round(scaling.predicted_replica_seconds, 1),
        "replica_seconds_measured": round(scaling.measured_replica_seconds, 1),
        "right_share": round(scaling.right_share, 4),
        "decision_error_s": round(median(errors), 2) if errors else None,
        "decision_error_max_s": round(max(errors), 2) if errors else None,
        "unmatched_decisions": scaling.unmatched,
    }


def goals(figures: dict[str, Any], accelerator: str) -> dict[str, Goal]:
    """Return the goals of the figures that were measured."""
    bounds: dict[str, Goal] = {
        f"error_{name}": {"max": error} for name, error in GOALS[accelerator].items()
    }
    return {name: goal for name, goal in (bounds | FLEET_GOALS).items() if name in figures}


if __name__ == "__main__":
    main()
