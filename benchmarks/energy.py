"""Energy for a million output tokens, by concurrent streams, and whether the ledger's is right.

One replica of Llama-3.1-8B's shape on a whole card. Closed loads take turns, `--repeats` times;
of each, the first `WARMUP_S` seconds do not count. `watts_N` and `wh_per_million_N` (output tokens,
as the engine counts them) are medians with N streams, by the ledger: what Ray reports of the card,
through `telemetry.jsonl`. `ledger_ratio_N` is the ledger's energy over that of `nvidia-smi`, which
looks five times a second over the same time: a sensor read by another program. On a CPU nothing
reports energy, and tokens a second are all there is.
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
Watts = list[tuple[float, float]]


def main() -> None:
    """Measure and print the result as the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--accelerator", default="cpu", choices=["cpu", "gpu"])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 32, 128])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=14)
    options = parser.parse_args()
    prepare()
    with tempfile.TemporaryDirectory() as folder, endpoint(options, Path(folder)) as served:
        found: dict[int, list[dict[str, float]]] = {n: [] for n in options.streams}
        for repeat in range(options.repeats):
            for streams in options.streams:
                run = wb.Run.create(folder, {}, run_id=f"{streams}-{repeat}")
                figures = asyncio.run(measured(served, run, streams, options.seconds))
                found[streams].append(figures)
                print(
                    streams, {name: round(value, 3) for name, value in figures.items()}, flush=True
                )
    figures = {
        f"{name}_{streams}": round(median(one[name] for one in several), 3)
        for streams, several in found.items()
        for name in several[0]
    }
    on_gpu = options.accelerator == "gpu"
    goals = {f"ledger_ratio_{n}": {"min": 0.95, "max": 1.05} for n in options.streams if on_gpu}
    report("energy", figures, goals)


@contextmanager
def endpoint(options: argparse.Namespace, folder: Path) -> Iterator[wb.Endpoint]:
    """One replica on the accelerator; it ends with the block."""
    fields: dict[str, Any] = {"accelerator": options.accelerator, "max_model_len": 1024}
    if options.accelerator == "gpu":
        fields |= {"source": str(write_shape(folder / "Llama-3.1-8B-shape"))}
        fields |= {"engine_kwargs": {"load_format": "dummy"}}
    scaling = wb.ScalingSpec(max_ongoing_requests=256)
    spec = wb.ServiceSpec(port=0, model=wb.ModelSpec(**fields, scaling=scaling))
    with wb.deploy(spec) as served:
        yield served


async def measured(
    served: wb.Endpoint, run: wb.Run, streams: int, seconds: float
) -> dict[str, float]:
    """One load: tokens a second, and where the card tells, watts, energy and both accounts."""
    load = wb.LoadSpec(
        arrivals=wb.ClosedLoop(max_concurrency=streams),
        prompts=wb.RandomPrompts(**LENGTHS),
        count=50 * streams,  # more than there is time for
    )
    running = wb.start_load(served, load, run=run, progress=None)
    with (
        wb.Telemetry(served, running.clock, run.append_telemetry, interval_s=0.5),
        sensor(running.clock) as seen,
    ):
        while running.start_s is None:
            await asyncio.sleep(0.1)
        began, until = running.start_s + WARMUP_S, running.start_s + seconds
        await asyncio.sleep(until - running.clock())
        running.stop()
        await running
    told = [
        (one.time_s, one.output_tokens)
        for one in run.samples()
        if isinstance(one, ReplicaSample) and one.output_tokens is not None
        if began <= one.time_s <= until
    ]
    (start_s, first), (end_s, last) = told[0], told[-1]
    cost = wb.cost_of(run, served.spec, PRICES, start_s=start_s, end_s=end_s)
    found = {"tokens_per_s": (last - first) / (end_s - start_s)}
    if cost.energy_kwh is None:
        return found
    joules = cost.energy_kwh * JOULES_PER_KWH
    return found | {
        "watts": joules / (end_s - start_s),
        "wh_per_million": joules / 3600 / (last - first) * 1e6,
        "ledger_ratio": joules / energy_j(seen, start_s, end_s),
    }


@contextmanager
def sensor(clock: Callable[[], float]) -> Iterator[Watts]:
    """While open, `nvidia-smi` tells the cards' power into the list, with the time on `clock`."""
    seen: Watts = []
    card = os.environ.get("CUDA_VISIBLE_DEVICES")
    command = ["nvidia-smi", *(["--id", card] if card else []), "--loop-ms", "200"]
    command += ["--query-gpu=power.draw", "--format=csv,noheader,nounits"]
    try:
        tool = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    except FileNotFoundError:
        yield seen
        return

    def read() -> None:
        assert tool.stdout is not None
        for line in tool.stdout:
            seen.append((clock(), float(line)))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield seen
    finally:
        tool.terminate()
        reader.join()


def energy_j(seen: Watts, start_s: float, end_s: float) -> float:
    """The area under the sensor's readings, by the trapezoidal rule."""
    import numpy as np

    times, watts = np.array(seen).T
    at = np.linspace(start_s, end_s, 1000)
    return float(np.trapezoid(np.interp(at, times, watts), at))


if __name__ == "__main__":
    main()
