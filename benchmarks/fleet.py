"""One day of load on a fixed and on an autoscaled fleet: $ per million tokens within the SLO.

The day has a narrow peak (`--width`), for which the fixed fleet has `--replicas`, one per card. The
autoscaled fleet has 1 to `--replicas`. `_sides.py` says how to measure each fleet in a run of its
own.

`dollars_per_million` counts tokens of requests within the SLO, `attainment` is their share, `*_s`
are replica-seconds. `ratio` is the fixed fleet's price over the autoscaled one's, `most` what a
fleet that followed the load at once would reach. With `--calibration`, `predicted_*` is what a
simulation of the same day says.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from typing import Any

from _report import Goal
from _sides import Figures, add_side_arguments, report_sides
from _vllm import add_model_arguments, model_spec, prepare

import workbench as wb
from workbench.experiments.fleets import max_savings_ratio

SIDES = ("autoscaled", "fixed")
GOALS: dict[str, Goal] = {"ratio": {"min": 2.0}}
PROMPTS = wb.RandomPrompts(input=wb.Uniform(low=64, high=192), output=wb.Uniform(low=64, high=192))
SCALING = {
    "upscale_delay_s": 1,
    "downscale_delay_s": 15,
    "look_back_period_s": 4,
    "metrics_interval_s": 0.5,
    "max_ongoing_requests": 256,
    "max_queued_requests": 1024,
}


def main() -> None:
    """Measure or compare the fleets, and print the result as the last line."""
    options = parse_args()
    prepare()

    def measure(side: str) -> Figures:
        return {f"{name}_{side}": value for name, value in run(options, side).items()}

    report_sides("fleet", options, SIDES, measure, compare)


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_side_arguments(parser, SIDES)
    add_model_arguments(parser)
    parser.add_argument("--replicas", type=int, default=2, help="replicas for the peak")
    parser.add_argument(
        "--rate", type=float, default=1.0, help="requests/s per replica at the peak"
    )
    parser.add_argument("--target", type=float, default=1.0, help="target_ongoing_requests")
    parser.add_argument("--seconds", type=float, default=60, help="seconds of the day")
    parser.add_argument("--width", type=float, default=0.2, help="width of the peak")
    parser.add_argument("--night", type=float, default=0.1, help="rate at night over the peak")
    parser.add_argument("--ttft-ms", type=float, default=1000)
    parser.add_argument("--tpot-ms", type=float, default=50)
    parser.add_argument("--price", type=float, default=1.0, help="$ per hour of a card, or CPU")
    parser.add_argument("--calibration", help="file of the constants of a replica, to simulate")
    return parser.parse_args()


def run(options: argparse.Namespace, side: str) -> Figures:
    """Deploy the fleet, send the day, and return its figures."""
    fixed = side == "fixed"
    scaling = wb.ScalingSpec(
        min_replicas=options.replicas if fixed else 1,
        max_replicas=options.replicas,
        target_ongoing_requests=options.target,
        **SCALING,
    )
    spec = wb.ServiceSpec(name="fleet", port=0, model=model_spec(options, scaling=scaling))
    load = day(options)
    slo = wb.SLO(ttft_ms=options.ttft_ms, tpot_ms=options.tpot_ms)
    prices = wb.Prices(**{f"{options.accelerator}_hour": options.price})
    predicted = prediction(options, spec, load, slo)
    with tempfile.TemporaryDirectory() as folder, wb.deploy(spec) as endpoint:
        warm_up = load.model_copy(update={"arrivals": wb.ClosedLoop(max_concurrency=4)})
        asyncio.run(_send(endpoint, warm_up.model_copy(update={"count": 16})))
        fleet = asyncio.run(
            wb.experiments.run_days(
                endpoint,
                load,
                slo,
                prices,
                run=wb.Run.create(folder, {}, run_id="fleet"),
                name=side,
                day_s=options.seconds,
                days=1,
                progress=None,
            )
        )
        (measured,) = fleet.days
        caveats = wb.experiments.fleet_caveats([fleet])
    print(side, *caveats, sep="\n", flush=True)
    states = ("busy", "idle", "starting", "stopping", "unknown", "held")
    return {
        "dollars_per_million": measured.cost.per_million_tokens,
        "attainment": measured.summary.slo_attainment,
        "most": round(max_savings_ratio(load.arrivals, options.replicas), 3),
        "caveats": len(caveats),
        **{f"{state}_s": round(getattr(measured.cost, f"{state}_s"), 1) for state in states},
        **predicted,
    }


async def _send(endpoint: wb.Endpoint, load: wb.LoadSpec) -> None:
    await wb.start_load(endpoint, load, progress=None)


def day(options: argparse.Namespace) -> Any:
    """Return the load of the day, the same for both fleets."""
    peak = options.rate * options.replicas
    arrivals = wb.diurnal(peak, options.seconds, night=options.night, width=options.width)
    return wb.LoadSpec(arrivals=arrivals, prompts=PROMPTS, timeout_s=60, seed=1)


def prediction(
    options: argparse.Namespace, spec: wb.ServiceSpec, load: wb.LoadSpec, slo: wb.SLO
) -> Figures:
    """Return what a simulation of the day says; nothing without a calibration."""
    if options.calibration is None:
        return {}
    calibration = wb.whatif.Calibration.load(options.calibration)
    simulation = wb.whatif.simulate(spec, load, calibration)
    return {
        "predicted_attainment": simulation.summary(slo).slo_attainment,
        "predicted_held_s": round(simulation.replica_seconds().total, 1),
    }


def compare(figures: dict[str, Any]) -> tuple[Figures, dict[str, Goal]]:
    """Return the figures of both fleets with the ratio of their prices, and the goals."""
    fixed, scaled = (figures.get(f"dollars_per_million_{name}") for name in ("fixed", "autoscaled"))
    ratio = round(fixed / scaled, 3) if fixed and scaled else None
    return {**figures, "ratio": ratio}, GOALS


if __name__ == "__main__":
    main()
