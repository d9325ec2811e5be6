"""Time and memory to summarize a run of a million requests.

The run is written to a temporary folder first, with requests of 64 tokens each in `requests.jsonl`.
Then a new process reads and summarizes it with an SLO, several times. `seconds` is the median wall
time from opening the folder to the finished summary, and `peak_gb` the largest resident size of
these processes.

    python benchmarks/summarize.py [--records N] [--tokens N] [--repeats N]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from _report import report

from workbench.metrics.slo import SLO
from workbench.metrics.summary import summarize
from workbench.records import RequestRecord
from workbench.runs.run import Run

BLOCK = 4096


def write_run(root: Path, records: int, tokens: int) -> Path:
    """Write a run of requests at 1,000 per second, one percent of them shed; return its folder."""
    rng = np.random.default_rng(0)
    run = Run.create(root, {"seed": 0, "records": records, "tokens": tokens})
    for start in range(0, records, BLOCK):
        gaps = rng.exponential(0.02, (BLOCK, tokens)).cumsum(axis=1)
        for i, row in enumerate(gaps[: records - start].tolist(), start):
            run.append_request(_record(i, i / 1000, row))
    return run.path


def _record(i: int, sent: float, gaps: list[float]) -> RequestRecord:
    shed = i % 100 == 99
    times = () if shed else tuple(sent + gap for gap in gaps)
    return RequestRecord(
        request_id=f"{i:032x}",
        scheduled_s=sent,
        sent_s=sent + 0.0004,
        first_token_s=None if shed else times[0],
        end_s=sent + 0.003 if shed else times[-1],
        token_times_s=times,
        prompt_tokens=None if shed else 64,
        output_tokens=None if shed else len(times),
        status="shed" if shed else "ok",
        error="RateLimitError: HTTP 429: busy" if shed else None,
        model="tiny",
        tenant=None,
    )


def measure(path: Path) -> dict[str, float]:
    """Summarize a run once, in this process."""
    started = time.perf_counter()
    summary = summarize(Run.open(path).records(), slo=SLO(ttft_ms=100))
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"seconds": seconds, "peak_gb": peak, "counted": summary.completed + summary.shed}


def main() -> None:
    """Measure, and print the result as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    with tempfile.TemporaryDirectory() as root:
        print(f"writing a run of {arguments.records:,} requests", flush=True)
        path = write_run(Path(root), arguments.records, arguments.tokens)
        size = (path / "requests.jsonl").stat().st_size / 1e9
        results = []
        for _ in range(arguments.repeats):
            command = [sys.executable, __file__, "--measure", str(path)]
            results.append(json.loads(subprocess.check_output(command)))
            print(json.dumps(results[-1]), flush=True)
    assert {result["counted"] for result in results} == {arguments.records}
    figures = {
        "seconds": round(statistics.median(result["seconds"] for result in results), 2),
        "peak_gb": round(max(result["peak_gb"] for result in results), 2),
        "records": arguments.records,
        "tokens_per_record": arguments.tokens,
        "file_gb": round(size, 2),
        "repeats": arguments.repeats,
    }
    report("summarize", figures, {"seconds": {"max": 10}, "peak_gb": {"max": 2}})


if __name__ == "__main__":
    main()
