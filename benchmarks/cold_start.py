"""From nothing to the first token: `deploy()` on a running idle cluster against bare vLLM.

In turn, A B A B: bare vLLM's process start to its first streamed token, and `deploy()` on a Ray
cluster that runs and is idle (Serve not started) to the first streamed token of its endpoint. Where
our time goes is read off the progress lines. `delete_s` is the end of a cluster that we started.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from statistics import median

from _report import report
from _vllm import BareServer
from openai import OpenAI

import workbench as wb
from serving import cluster

GOALS = {"cold_start_ratio": {"max": 1.5}, "delete_s": {"max": 5.0}}
MODEL = wb.ModelSpec(max_model_len=1024)


def main() -> int:
    """Measure, print a line a repeat, and the result as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    bare_cold_start()  # warms the file cache and vLLM's own caches for both
    rows = []
    for repeat in range(1, options.repeats + 1):
        row = {"bare_s": bare_cold_start()} | our_cold_start()
        said = ", ".join(f"{name} {value:.1f}" for name, value in row.items())
        print(f"repeat {repeat}: {said}", flush=True)
        rows.append(row)
    figures = {name: round(median(row[name] for row in rows), 2) for name in rows[0]}
    figures["cold_start_ratio"] = round(median(r["ours_s"] / r["bare_s"] for r in rows), 3)
    return 0 if report("cold_start", figures, GOALS) else 1


def bare_cold_start() -> float:
    """Seconds from starting bare vLLM to its first token."""
    began = time.monotonic()
    with BareServer(MODEL) as server:
        server.wait()
        first_token(OpenAI(base_url=f"{server.base_url}/v1", api_key="none"))
        return time.monotonic() - began


def our_cold_start() -> dict[str, float]:
    """Seconds of each part of ours, on a fresh idle cluster."""
    spec = wb.ServiceSpec(port=0, model=MODEL)
    cluster.connect(spec)
    lines: list[str] = []
    began = time.monotonic()
    endpoint = wb.deploy(spec, progress=lines.append)
    first_token(endpoint.client)
    ours = time.monotonic() - began
    ready = float(lines[-1].split()[0])
    starting = float(next(line for line in lines if re.search(r": 1 starting", line)).split()[0])
    began = time.monotonic()
    endpoint.delete()
    return {
        "ours_s": ours,
        "serve_start_s": starting,
        "replica_start_s": ready - starting,
        "first_token_s": ours - ready,
        "delete_s": time.monotonic() - began,
    }


def first_token(client: OpenAI) -> None:
    """Until the first streamed token."""
    stream = client.completions.create(
        model=MODEL.model_id, prompt="Prefill is", max_tokens=2, stream=True
    )
    next(iter(stream))


if __name__ == "__main__":
    sys.exit(main())
