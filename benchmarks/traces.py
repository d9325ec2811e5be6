"""Time and memory to read and schedule a trace of a million requests, and the times of a replay.

Traces are written to a temporary folder first. `csv` has the columns of BurstGPT, `dates` those of
Azure's traces, and `blocks` those of Mooncake's, with a hash id per 512 tokens of a prompt. A new
process reads each trace and computes its send times, several times: `seconds_...` is the median
wall time, `cpu_s_...` the median CPU time, and `peak_gb_...` the largest resident size. The figures
that end in `_with_ids` are for a reader that keeps the hash ids.

Replay: a trace with 200 requests/s (Poisson) is read, and two load workers send its requests to a
scripted server. `send_lag_p99_ms` is sent minus due, the median over the repeats.

    python benchmarks/traces.py [--requests N] [--repeats N] [--seconds S]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from _report import report
from client import Worker

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from support import scripted_server as scripted

from workbench.metrics.summary import summarize
from workbench.records import RequestRecord
from workbench.workload.arrivals import TraceReplay
from workbench.workload.schedule import offsets
from workbench.workload.traces import read_trace, replay_trace

BLOCK = 512
RATE = 200.0
START = datetime(2024, 5, 10, tzinfo=UTC)

Rows = Iterator[tuple[float, int, int]]


def rows(number: int, rate: float, seed: int = 0) -> Rows:
    """Yield time in seconds, prompt tokens and output tokens of requests."""
    rng = np.random.default_rng(seed)
    times = rng.exponential(1 / rate, number).cumsum().tolist()
    prompts, outputs = (rng.integers(1, most, number).tolist() for most in (8000, 1000))
    yield from zip(times, prompts, outputs, strict=True)


def csv_trace(requests: Rows) -> Iterator[str]:
    """Yield the lines of a trace with the columns of BurstGPT."""
    yield "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"
    for at, prompt, output in requests:
        yield f"{at:.6f},GPT-4,{prompt},{output},{prompt + output},API log"


def dates_trace(requests: Rows) -> Iterator[str]:
    """Yield the lines of a trace with the columns of Azure's traces."""
    yield "TIMESTAMP,ContextTokens,GeneratedTokens"
    for at, prompt, output in requests:
        yield f"{START + timedelta(seconds=at)},{prompt},{output}"


def blocks_trace(requests: Rows) -> Iterator[str]:
    """Yield the lines of a trace with the columns of Mooncake's. All prompts share one block."""
    used = 1
    for at, prompt, output in requests:
        own = -(-prompt // BLOCK) - 1
        fields = {"timestamp": int(at * 1e3), "input_length": prompt, "output_length": output}
        yield json.dumps(fields | {"hash_ids": [0, *range(used, used + own)]})
        used += own


TRACES: dict[str, Callable[[Rows], Iterator[str]]] = {
    "csv": csv_trace,
    "dates": dates_trace,
    "blocks": blocks_trace,
}


def schedule(file: Path, *, content: bool) -> dict[str, float]:
    """Read and schedule a trace once, in this process."""
    started, cpu_started = time.perf_counter(), time.process_time()
    spec = TraceReplay(path=str(file))
    requests = replay_trace(spec, content=content).requests
    times = (request.offset_s for request in requests)
    scheduled = len(list(offsets(spec, np.random.default_rng(0), trace=times)))
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"seconds": seconds, "cpu_s": cpu_s, "peak_gb": peak, "scheduled": scheduled}


def reading(file: Path, repeats: int, *, content: bool) -> dict[str, float]:
    """Return the median time and the peak memory of new processes that read and schedule."""
    results = []
    for _ in range(repeats):
        command = [sys.executable, __file__, "--schedule", str(file), *(["--content"] * content)]
        results.append(json.loads(subprocess.check_output(command)))
        print(file.name, json.dumps(results[-1]), flush=True)
    name = f"{file.name}_with_ids" if content else file.name
    return {
        f"seconds_{name}": round(median(result["seconds"] for result in results), 2),
        f"cpu_s_{name}": round(median(result["cpu_s"] for result in results), 2),
        f"peak_gb_{name}": round(max(result["peak_gb"] for result in results), 2),
        f"scheduled_{name}": results[-1]["scheduled"],
    }


def replay(workers: Sequence[Worker], file: Path) -> float:
    """Send the requests of a trace, and return the p99 of sent minus due, in milliseconds."""
    trace = [request.offset_s for request in read_trace(file)]
    with scripted.spawn("--tokens", "16", "--ttft", "0.05", "--gap", "0.01") as base_url:
        for worker in workers:  # warm-up
            worker.send("open_loop", base_url=base_url, due_s=[0.0] * 16)
            worker.result()
        start = time.perf_counter() + 1
        due = [start + at for at in trace]
        for i, worker in enumerate(workers):
            worker.send("open_loop", base_url=base_url, due_s=due[i :: len(workers)])
        records = [_record(row) for worker in workers for row in worker.result()["records"]]
    lag = summarize(records).client_health.send_lag_p99_ms
    print(f"{len(records)} requests, send lag p99 {lag} ms", flush=True)
    return float("nan") if lag is None else lag


def _record(row: dict[str, Any]) -> RequestRecord:
    return RequestRecord(**row | {"token_times_s": tuple(row["token_times_s"])})


def write(file: Path, lines: Iterator[str]) -> Path:
    """Write a trace."""
    with file.open("w") as text:
        text.writelines(line + "\n" for line in lines)
    return file


def main() -> None:
    """Measure, and print the result as the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10, help="seconds of each replay")
    parser.add_argument("--schedule", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--content", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.schedule:
        print(json.dumps(schedule(options.schedule, content=options.content)))
        return
    figures: dict[str, float] = {"requests": options.requests, "repeats": options.repeats}
    with tempfile.TemporaryDirectory() as root:
        for name, lines in TRACES.items():
            print(f"writing {options.requests:,} requests of {name}", flush=True)
            file = write(Path(root) / name, lines(rows(options.requests, rate=10.0)))
            figures |= reading(file, options.repeats, content=False)
        figures |= reading(Path(root) / "blocks", options.repeats, content=True)
        short = csv_trace(rows(round(RATE * options.seconds), RATE, seed=1))
        file = write(Path(root) / "replay", short)
        with Worker() as first, Worker() as second:
            lags = [replay((first, second), file) for _ in range(options.repeats)]
    figures["send_lag_p99_ms"] = round(median(lags), 3)
    goals = {f"seconds_{name}": {"max": 5.0} for name in TRACES}
    goals |= {f"peak_gb_{name}": {"max": 1.0} for name in TRACES}
    report("traces", figures, goals | {"send_lag_p99_ms": {"max": 2.0}})


if __name__ == "__main__":
    main()
