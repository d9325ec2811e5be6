"""Speed and memory of the simulator.

Two loads, each in a new process that has compiled the simulator before: 8 replicas with 10
requests/s each, and a million requests on 1,000 replicas. Prompts have 32 to 512 tokens and answers
16 to 256; a step takes about 10 ms. `ratio` is simulated time over wall time, `ratio_cpu` over the
CPU time of the process, which other processes on the machine disturb less. `million_s` and
`million_gb` are the wall time and the largest resident size for the million, from the finished
workload to the summary. `day_cpu_s` is the CPU time for a day of 10,000 requests on an autoscaled
service, and `sweep_s` the wall time of 200 such days with different settings, on all cores.
`identical` says whether two simulations with one seed had the same bytes.

    python benchmarks/whatif.py [--repeats N]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np
from _report import Goal, report

import workbench as wb
from workbench.whatif.calibration import Calibration
from workbench.whatif.result import Simulation
from workbench.whatif.simulator import simulate
from workbench.whatif.workload import Workload, single_requests

PARTS = ("fleet", "million", "day", "sweep")
REPLICA = {"step_s": 8e-3, "prefill_token_s": 2e-5, "running_s": 1e-4, "kv_token_s": 1e-8}
FRONT = {"request_s": 2e-3, "token_s": 1e-5, "start_s": (20.0, 25.0, 30.0), "stop_s": (2.0,)}


def calibration() -> Calibration:
    """Return a replica that takes about 10 ms for a step."""
    model = wb.ModelSpec().model_id
    return Calibration(model=model, device="none", kv_blocks=16_384, **REPLICA, **FRONT)


def spec(least: int, most: int) -> wb.ServiceSpec:
    """Return a service with this many replicas."""
    scaling = wb.ScalingSpec(min_replicas=least, max_replicas=most, target_ongoing_requests=2)
    return wb.ServiceSpec(model=wb.ModelSpec(scaling=scaling))


def load(requests: int, seconds: float) -> Workload:
    """Return requests at random times."""
    rng = np.random.default_rng(0)
    due_s = np.sort(rng.uniform(0, seconds, requests))
    return single_requests(due_s, rng.integers(32, 513, requests), rng.integers(16, 257, requests))


def timed(spec: wb.ServiceSpec, workload: Workload, **options: Any) -> dict[str, Any]:
    """Simulate once and return the times, the memory and a digest of the result."""
    started, cpu = time.perf_counter(), time.process_time()
    simulation = simulate(spec, workload, calibration(), **options)
    simulation.summary()
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {
        "seconds": seconds,
        "cpu_s": cpu_s,
        "peak_gb": peak,
        "simulated_s": simulation.duration_s,
        "steps": simulation.steps,
        "digest": digest(simulation),
    }


def digest(simulation: Simulation) -> str:
    """Return a hash of everything that a simulation returned."""
    parts = [repr(simulation.decisions())]
    frames = simulation.replicas_frame(), simulation.samples_frame()
    whole = hashlib.sha256("".join([*parts, *(frame.to_csv() for frame in frames)]).encode())
    for column in simulation.columns().fields:
        whole.update(column.tobytes())
    return whole.hexdigest()


def sweep() -> dict[str, Any]:
    """Simulate 200 days with different settings and return the wall time."""
    grid: dict[str, list[Any]] = {
        "max_replicas": [4, 8],
        "target_ongoing_requests": [0.25, 0.5, 1, 2, 4],
        "upscale_delay_s": [0, 5, 10, 20, 30],
        "downscale_delay_s": [30, 120, 600, 1800],
    }
    day, started = load(10_000, 86_400), time.perf_counter()
    table = wb.whatif.sweep(spec(1, 8), day, calibration(), grid, slo=wb.SLO(ttft_ms=500))
    return {"seconds": time.perf_counter() - started, "settings": len(table)}


def measure(part: str) -> dict[str, Any]:
    """Run one part in this process."""
    simulate(spec(1, 1), load(10, 10), calibration())  # loads the compiled functions
    if part == "million":
        return timed(spec(1000, 1000), load(1_000_000, 100), token_times=False)
    if part == "sweep":
        return sweep()
    if part == "day":
        return timed(spec(1, 8), load(10_000, 86_400), token_times=False)
    return timed(spec(8, 8), load(80 * 1800, 1800), token_times=False)


def run(part: str) -> dict[str, Any]:
    """Run one part in a new process."""
    command = [sys.executable, __file__, "--part", part]
    result: dict[str, Any] = json.loads(subprocess.check_output(command).splitlines()[-1])
    print(part, json.dumps(result), flush=True)
    return result


def main() -> None:
    """Measure, and print the result as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(measure(arguments.part)))
        return
    run("day")  # compiles
    fleets = [run("fleet") for _ in range(arguments.repeats)]
    days = [run("day") for _ in range(arguments.repeats)]
    million = run("million")
    swept = run("sweep")
    digests = [{result["digest"] for result in results} for results in (fleets, days)]
    figures = {
        "ratio": round(statistics.median(r["simulated_s"] / r["seconds"] for r in fleets)),
        "ratio_cpu": round(statistics.median(r["simulated_s"] / r["cpu_s"] for r in fleets)),
        "ns_per_step": round(statistics.median(r["cpu_s"] / r["steps"] * 1e9 for r in fleets)),
        "million_s": round(million["seconds"], 1),
        "million_cpu_s": round(million["cpu_s"], 1),
        "million_gb": round(million["peak_gb"], 2),
        "day_cpu_s": round(statistics.median(result["cpu_s"] for result in days), 2),
        "sweep_s": round(swept["seconds"], 1),
        "identical": int(all(len(found) == 1 for found in digests)),
        "repeats": arguments.repeats,
    }
    goals: dict[str, Goal] = {
        "ratio": {"min": 2000},
        "million_s": {"max": 60},
        "million_gb": {"max": 4},
        "day_cpu_s": {"max": 0.3},
        "sweep_s": {"max": 60},
        "identical": {"min": 1},
    }
    report("whatif", figures, goals)


if __name__ == "__main__":
    main()
