"""Whether our figures are those of `vllm bench serve`: the same load through both, one engine.

Bare vLLM serves; `streams` requests at a time, 64 tokens in and 64 out, go through `vllm bench
serve`'s own code and through `workbench.loadgen.client`, A B A B, each in a process of its own.
The prompts
of both are from vLLM's random dataset, with seeds of their own, so that neither finds the other's
in the prefix cache. The first pair warms up and is not kept.

`ttft_ratio`, `tpot_ratio`, `e2el_ratio`: the median over the pairs of our median latency over
theirs; `_low` and `_high` are the bootstrap interval of their geometric mean, 95 %. They agree
if a ratio is within 5 % of 1, or within half the interval's width, whichever is wider.
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
    found = RandomDataset(random_seed=seed).sample(tokenizer, count, **lengths)
    return [request.prompt for request in found]
print("RESULT " + json.dumps([texts(seed) for seed in seeds]))
"""
Pair = tuple[Mapping[str, float], Mapping[str, float]]


class Theirs(Client):
    """vLLM's client, asked for E2EL too."""

    def _ask(self, arguments: list[str]) -> dict[str, Any]:
        return super()._ask([*arguments, "--percentile-metrics", "ttft,tpot,itl,e2el"])


def prompts(model: ModelSpec, count: int, seeds: Sequence[int]) -> list[list[str]]:
    """For each seed `count` prompts, made by vLLM as its client makes its own."""
    asked = json.dumps([model.path, TOKENS, count, list(seeds)])
    said = subprocess.run(
        [sys.executable, "-c", PROMPTS, asked],
        env={**os.environ, **environment(model)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    line = next(line for line in said.splitlines() if line.startswith("RESULT "))
    found: list[list[str]] = json.loads(line.removeprefix("RESULT "))
    return found


async def ours(base_url: str, model_id: str, texts: Sequence[str], streams: int) -> dict[str, Any]:
    """The closed loop through our client; raises RuntimeError unless all got all their tokens."""
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
    """The figures under vLLM's names, if the load is the one that was asked for."""
    found = summarize(records).model_dump()
    got, asked = (found["completed"], found["total_output_tokens"]), (count, count * TOKENS)
    if got != asked:
        why = next((record.error for record in records if record.error), "no error")
        raise RuntimeError(f"ours: requests, tokens: {got}, not {asked} ({why})")
    if abs(found["total_input_tokens"] / asked[1] - 1) > 0.05:
        raise RuntimeError(f"ours: {found['total_input_tokens']} tokens in, not {asked[1]}")
    return found


def run(
    pairs: int, requests: int, *, model: ModelSpec | None = None, streams: int = 8
) -> dict[str, float]:
    """Start bare vLLM, measure `pairs` pairs of `requests` requests a side, and end it."""
    model = model or wb.ModelSpec(max_model_len=1024)
    seeds = range(pairs + 1)
    texts = prompts(model, requests, [2 * seed + 1 for seed in seeds])
    kept: list[Pair] = []
    with BareServer(model) as bare:
        bare.wait()
        with Theirs(model, "none") as client:
            for seed in seeds:
                theirs = client.measure(bare.base_url, streams, requests, 2 * seed)
                load = (model.model_id, texts[seed], streams)
                kept.append((asyncio.run(ours(f"{bare.base_url}/v1", *load)), theirs))
                print(f"pair {seed}{'' if seed else ' (warm-up)'}: {said(kept[-1])}", flush=True)
    return figures(kept[1:])


def said(pair: Pair) -> str:
    """One pair in words."""
    return ", ".join(
        f"{name.upper()} {ours:.2f} and {theirs:.2f} ms"
        for name in LATENCIES
        for ours, theirs in [[side[f"median_{name}_ms"] for side in pair]]
    )


def figures(pairs: Sequence[Pair]) -> dict[str, float]:
    """Each latency's ratio with its interval, and the medians of both sides."""
    found = {}
    for name in LATENCIES:
        ours, theirs = zip(*([s[f"median_{name}_ms"] for s in pair] for pair in pairs), strict=True)
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        logs = bootstrap(np.log(ratios).tolist(), rng=np.random.default_rng(0))
        found[f"{name}_ratio"] = round(median(ratios), 4)
        found[f"{name}_ratio_low"] = round(float(np.exp(logs.low)), 4)
        found[f"{name}_ratio_high"] = round(float(np.exp(logs.high)), 4)
        found[f"{name}_ours_ms"] = round(median(ours), 3)
        found[f"{name}_vllm_ms"] = round(median(theirs), 3)
    return found


def goals(found: Mapping[str, float]) -> dict[str, Goal]:
    """Within 5 % of 1, or half the width of the interval if that is more."""
    bounds: dict[str, Goal] = {}
    for name in (f"{latency}_ratio" for latency in LATENCIES):
        width = max(TOLERANCE, (found[f"{name}_high"] - found[f"{name}_low"]) / 2)
        bounds[name] = {"min": round(1 - width, 4), "max": round(1 + width, 4)}
    return bounds


def main() -> None:
    """Measure, print a line a pair, and the result as the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--requests", type=int, default=128, help="a side and pair")
    parser.add_argument("--streams", type=int, default=8)
    options = parser.parse_args()
    if options.pairs < 3:
        parser.error(f"--pairs is {options.pairs}: an interval needs at least 3")
    # Leave through every `finally` when asked to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    model = model_spec(options)
    found = run(options.pairs, options.requests, model=model, streams=options.streams)
    settings = {"pairs": options.pairs, "requests": options.requests, "streams": options.streams}
    report("agreement", settings | found, goals(found))


if __name__ == "__main__":
    main()
