"""Compare our figures with those of `vllm bench serve`, for the same load on the same engine.

Bare vLLM serves. Requests with 64 tokens in and 64 out, `streams` at a time, go through the code of
`vllm bench serve` and through `workbench.loadgen.client` in turn, each in its own process. Prompts
come from vLLM's random dataset, with different seeds, so that neither client finds the other's
prompts in the prefix cache. The first pair is a warm-up.

`ttft_ratio`, `tpot_ratio` and `e2el_ratio` are the median over the pairs of our median latency over
vLLM's. `_low` and `_high` are the 95 % bootstrap interval of the geometric mean. The clients agree
if a ratio is within 5 % of 1, or within half the width of the interval, whichever is wider.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
from _report import Goal, report
from _vllm import TOKENS, BareServer, Client, add_model_arguments, model_spec

import workbench as wb
from serving.engine.engine_args import environment
from serving.spec.model import ModelSpec
from workbench.loadgen.client import stream_completion
from workbench.metrics.bootstrap import bootstrap
from workbench.metrics.summary import summarize
from workbench.records import RequestRecord

LATENCIES = ("ttft", "tpot", "e2el")
TOLERANCE = 0.05
PROMPTS = """
import json, sys
from vllm.benchmarks.datasets import RandomDataset
from vllm.tokenizers import get_tokenizer
path, tokens, count, seeds = json.loads(sys.argv[1])
tokenizer = get_tokenizer(path)
lengths = {"input_len": tokens, "output_len": tokens}
def texts(seed):
    requests = RandomDataset(random_seed=seed).sample(tokenizer, count, **lengths)
    return [request.prompt for request in requests]
print("RESULT " + json.dumps([texts(seed) for seed in seeds]))
"""
Pair = tuple[Mapping[str, float], Mapping[str, float]]


class ClientWithE2EL(Client):
    """vLLM's client, which also reports E2EL."""

    def _ask(self, arguments: list[str]) -> dict[str, Any]:
        return super()._ask([*arguments, "--percentile-metrics", "ttft,tpot,itl,e2el"])


def prompts(model: ModelSpec, count: int, seeds: Sequence[int]) -> list[list[str]]:
    """Return `count` prompts for each seed, created by vLLM as for its own client."""
    arguments = json.dumps([model.path, TOKENS, count, list(seeds)])
    output = subprocess.run(
        [sys.executable, "-c", PROMPTS, arguments],
        env={**os.environ, **environment(model)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    line = next(line for line in output.splitlines() if line.startswith("RESULT "))
    texts: list[list[str]] = json.loads(line.removeprefix("RESULT "))
    return texts


async def ours(base_url: str, model_id: str, texts: Sequence[str], streams: int) -> dict[str, Any]:
    """Send the closed loop through our client, and return its figures."""
    from openai import AsyncOpenAI, DefaultAioHttpClient

    records: list[RequestRecord] = []
    work = iter(texts)
    http = DefaultAioHttpClient()
    async with AsyncOpenAI(base_url=base_url, api_key="none", http_client=http) as client:

        async def slot() -> None:
            fields: dict[str, Any] = {"model": model_id, "max_tokens": TOKENS, "ignore_eos": True}
            for text in work:
                fields |= {"prompt": text, "clock": time.perf_counter}
                records.append(await stream_completion(client, **fields))

        await asyncio.gather(*(slot() for _ in range(streams)))
    return checked(records, len(texts))


def checked(records: Sequence[RequestRecord], count: int) -> dict[str, Any]:
    """Return the figures under vLLM's names.

    Raises:
        RuntimeError: A request did not get all of its tokens.
    """
    figures = summarize(records).model_dump()
    counts = (figures["completed"], figures["total_output_tokens"])
    expected = (count, count * TOKENS)
    if counts != expected:
        error = next((record.error for record in records if record.error), "no error")
        raise RuntimeError(f"requests and tokens must be {expected}, got {counts} ({error})")
    if abs(figures["total_input_tokens"] / (count * TOKENS) - 1) > 0.05:
        inputs = figures["total_input_tokens"]
        raise RuntimeError(f"input tokens must be about {count * TOKENS}, got {inputs}")
    return figures


def run(
    pairs: int, requests: int, *, model: ModelSpec | None = None, streams: int = 8
) -> dict[str, float]:
    """Start bare vLLM, measure `pairs` pairs of `requests` requests per side, and stop it."""
    model = model or wb.ModelSpec(max_model_len=1024)
    seeds = range(pairs + 1)
    texts = prompts(model, requests, [2 * seed + 1 for seed in seeds])
    results: list[Pair] = []
    with BareServer(model) as bare:
        bare.wait()
        with ClientWithE2EL(model, "none") as client:
            for seed in seeds:
                theirs = client.measure(bare.base_url, streams, requests, 2 * seed)
                load = (model.model_id, texts[seed], streams)
                results.append((asyncio.run(ours(f"{bare.base_url}/v1", *load)), theirs))
                print(
                    f"pair {seed}{'' if seed else ' (warm-up)'}: {describe(results[-1])}",
                    flush=True,
                )
    return figures(results[1:])


def describe(pair: Pair) -> str:
    """Return a line about one pair."""
    return ", ".join(
        f"{name.upper()} {ours:.2f} and {theirs:.2f} ms"
        for name in LATENCIES
        for ours, theirs in [[side[f"median_{name}_ms"] for side in pair]]
    )


def figures(pairs: Sequence[Pair]) -> dict[str, float]:
    """Return each latency's ratio with its interval, and the medians of both sides."""
    values = {}
    for name in LATENCIES:
        ours, theirs = zip(*([s[f"median_{name}_ms"] for s in pair] for pair in pairs), strict=True)
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        logs = bootstrap(np.log(ratios).tolist(), rng=np.random.default_rng(0))
        values[f"{name}_ratio"] = round(median(ratios), 4)
        values[f"{name}_ratio_low"] = round(float(np.exp(logs.low)), 4)
        values[f"{name}_ratio_high"] = round(float(np.exp(logs.high)), 4)
        values[f"{name}_ours_ms"] = round(median(ours), 3)
        values[f"{name}_vllm_ms"] = round(median(theirs), 3)
    return values


def goals(figures: Mapping[str, float]) -> dict[str, Goal]:
    """Return the bounds: 5 % around 1, or half the width of the interval if that is more."""
    bounds: dict[str, Goal] = {}
    for name in (f"{latency}_ratio" for latency in LATENCIES):
        width = max(TOLERANCE, (figures[f"{name}_high"] - figures[f"{name}_low"]) / 2)
        bounds[name] = {"min": round(1 - width, 4), "max": round(1 + width, 4)}
    return bounds


def main() -> None:
    """Measure, and print a line per pair and the result as the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--requests", type=int, default=128, help="requests per side and pair")
    parser.add_argument("--streams", type=int, default=8)
    options = parser.parse_args()
    if options.pairs < 3:
        parser.error(f"--pairs must be at least 3 for an interval, got {options.pairs}")
    # Run every `finally` block on SIGTERM.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    model = model_spec(options)
    values = run(options.pairs, options.requests, model=model, streams=options.streams)
    settings = {"pairs": options.pairs, "requests": options.requests, "streams": options.streams}
    report("agreement", settings | values, goals(values))


if __name__ == "__main__":
    main()
