"""Energy per million output tokens by number of streams, and a check of the cost ledger's energy.

One replica of Llama-3.1-8B's shape uses a whole GPU. Closed loads take turns, `--repeats` times;
the first `WARMUP_S` seconds of each do not count. `watts_N` and `wh_per_million_N` (output tokens
as the engine counts them) are medians with N streams by the ledger, which uses what Ray reports
about the GPU in `telemetry.jsonl`. `ledger_ratio_N` is the ledger's energy over that of
`nvidia-smi`, which reads the sensor five times per second during the same time. On a CPU no energy
is reported, and the only figures are tokens per second.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from _report import report
from _shape import write_shape
from _vllm import prepare

import workbench as wb
from workbench.cost.replica_seconds import JOULES_PER_KWH
from workbench.records import ReplicaSample

WARMUP_S = 4.0
LENGTHS = {"input": 128, "output": 256}
PRICES = wb.Prices(gpu_hour=0.0, cpu_hour=0.0)
Readings = list[tuple[float, float]]


def main() -> None:
    """Measure, and print the result as the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--accelerator", default="cpu", choices=["cpu", "gpu"])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 32, 128])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=14, help="seconds of each load")
    options = parser.parse_args()
    prepare()
    with tempfile.TemporaryDirectory() as folder, endpoint(options, Path(folder)) as served:
        results: dict[int, list[dict[str, float]]] = {n: [] for n in options.streams}
        for repeat in range(options.repeats):
            for streams in options.streams:
                run = wb.Run.create(folder, {}, run_id=f"{streams}-{repeat}")
                figures = asyncio.run(measure(served, run, streams, options.seconds))
                results[streams].append(figures)
                print(
                    streams, {name: round(value, 3) for name, value in figures.items()}, flush=True
                )
    figures = {
        f"{name}_{streams}": round(median(row[name] for row in rows), 3)
        for streams, rows in results.items()
        for name in rows[0]
    }
    on_gpu = options.accelerator == "gpu"
    goals = {f"ledger_ratio_{n}": {"min": 0.95, "max": 1.05} for n in options.streams if on_gpu}
    report("energy", figures, goals)


@contextmanager
def endpoint(options: argparse.Namespace, folder: Path) -> Iterator[wb.Endpoint]:
    """Deploy one replica on the accelerator for the duration of a `with` block."""
    fields: dict[str, Any] = {"accelerator": options.accelerator, "max_model_len": 1024}
    if options.accelerator == "gpu":
        fields |= {"source": str(write_shape(folder / "Llama-3.1-8B-shape"))}
        fields |= {"engine_kwargs": {"load_format": "dummy"}}
    scaling = wb.ScalingSpec(max_ongoing_requests=256)
    spec = wb.ServiceSpec(port=0, model=wb.ModelSpec(**fields, scaling=scaling))
    with wb.deploy(spec) as served:
        yield served


async def measure(
    served: wb.Endpoint, run: wb.Run, streams: int, seconds: float
) -> dict[str, float]:
    """Run one load; return tokens per second and, where they are reported, power and energy."""
    load = wb.LoadSpec(
        arrivals=wb.ClosedLoop(max_concurrency=streams),
        prompts=wb.RandomPrompts(**LENGTHS),
        count=50 * streams,  # more than fit into the time
    )
    running = wb.start_load(served, load, run=run, progress=None)
    with (
        wb.Telemetry(served, running.clock, run.append_telemetry, interval_s=0.5),
        power_sensor(running.clock) as readings,
    ):
        while running.start_s is None:
            await asyncio.sleep(0.1)
        started, until = running.start_s + WARMUP_S, running.start_s + seconds
        await asyncio.sleep(until - running.clock())
        running.stop()
        await running
    counts = [
        (sample.time_s, sample.output_tokens)
        for sample in run.samples()
        if isinstance(sample, ReplicaSample) and sample.output_tokens is not None
        if started <= sample.time_s <= until
    ]
    (start_s, first), (end_s, last) = counts[0], counts[-1]
    cost = wb.cost_of(run, served.spec, PRICES, start_s=start_s, end_s=end_s)
    figures = {"tokens_per_s": (last - first) / (end_s - start_s)}
    if cost.energy_kwh is None:
        return figures
    joules = cost.energy_kwh * JOULES_PER_KWH
    return figures | {
        "watts": joules / (end_s - start_s),
        "wh_per_million": joules / 3600 / (last - first) * 1e6,
        "ledger_ratio": joules / energy_j(readings, start_s, end_s),
    }


@contextmanager
def power_sensor(clock: Callable[[], float]) -> Iterator[Readings]:
    """Collect (time, watts) of the GPU from `nvidia-smi` while the `with` block runs."""
    readings: Readings = []
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
    command = ["nvidia-smi", *(["--id", gpu] if gpu else []), "--loop-ms", "200"]
    command += ["--query-gpu=power.draw", "--format=csv,noheader,nounits"]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    except FileNotFoundError:
        yield readings
        return

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            readings.append((clock(), float(line)))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield readings
    finally:
        process.terminate()
        reader.join()


def energy_j(readings: Readings, start_s: float, end_s: float) -> float:
    """Return the energy in joules by the trapezoidal rule."""
    import numpy as np

    times, watts = np.array(readings).T
    at = np.linspace(start_s, end_s, 1000)
    return float(np.trapezoid(np.interp(at, times, watts), at))


if __name__ == "__main__":
    main()
