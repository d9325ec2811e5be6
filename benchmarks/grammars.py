"""Delay of other requests while clients send grammars that take long to compile.

One client streams answers one by one. Meanwhile four clients of another process send bodies
of one kind, and leave after two seconds. The kinds are:

- `rejected`: a schema with an enum of 60,000 strings, which the gate rejects by its size
- `enum`: a schema with as many long enum values as the default limits allow, all different
- `alternatives`: a regular expression with as many alternatives as they allow, all different

`gap_p50_ms_KIND`, `gap_p99_ms_KIND` and `gap_max_ms_KIND` are the gaps between two tokens of the
streams, and `ttft_max_ms_KIND` is their longest time to first token; KIND `quiet` is without other
clients. `answers_KIND` counts the statuses that the other clients got, and how often they left.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import httpx
import numpy as np
from _report import Goal, report
from _vllm import prepare

import workbench as wb

ATTACKERS, PATIENCE_S = 4, 2.0
Target = tuple[str, str, str]
"""Base URL, key and model of the endpoint."""
LIMITS = wb.Limits()
GOALS: dict[str, Goal] = {
    f"{figure}_max_ms_{kind}": {"max": 1000}
    for kind in ("rejected", "enum", "alternatives")
    for figure in ("gap", "ttft")
}


def enum_body(values: int, length: int, seed: int) -> dict[str, Any]:
    """Return a body whose schema has an enum of `values` strings of `length` characters."""
    words = [f"{seed}-{number}".ljust(length, "x") for number in range(values)]
    schema = {"name": "x", "schema": {"enum": words}}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def alternatives_body(seed: int) -> dict[str, Any]:
    """Return a body with a regular expression that is close to both of its limits."""
    count = LIMITS.max_alternatives - 1
    length = LIMITS.max_grammar_bytes // count - 2
    words = (f"{seed:x}{number:x}".ljust(length, "y") for number in range(count))
    return {"structured_outputs": {"regex": "|".join(words)}}


LONGEST = LIMITS.max_schema_bytes // LIMITS.max_enum_values - 8
KINDS: dict[str, Callable[[int], dict[str, Any]]] = {
    "rejected": lambda seed: enum_body(60_000, 12, seed),
    "enum": lambda seed: enum_body(LIMITS.max_enum_values - 1, LONGEST, seed),
    "alternatives": alternatives_body,
}


def main() -> None:
    """Measure, and print the result as the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=30, help="duration of each kind")
    options = parser.parse_args()
    prepare()
    figures: dict[str, float | str] = {}
    with wb.deploy(wb.ServiceSpec(port=0)) as endpoint:
        target = (endpoint.base_url, endpoint.api_key.get_secret_value(), endpoint.model_id)
        figures |= asyncio.run(measure(target, "quiet", options.seconds))
        for kind in KINDS:
            with attacked(target, kind) as answers:
                figures |= asyncio.run(measure(target, kind, options.seconds))
            figures[f"answers_{kind}"] = answers[0]
    report("grammars", figures, GOALS)


@contextmanager
def attacked(target: Target, kind: str) -> Iterator[list[str]]:
    """Send bodies of a kind from another process; at the end, the list has what was answered."""
    context = multiprocessing.get_context("spawn")
    stop, results, answers = context.Event(), context.Queue(), list[str]()
    process = context.Process(target=attack_until, args=(stop, results, target, kind))
    process.start()
    try:
        yield answers
    finally:
        stop.set()
        answers.append(results.get(timeout=60))
        process.join()


def attack_until(stop: Any, results: Any, target: Target, kind: str) -> None:
    """Send bodies of a kind until `stop` is set, and put what was answered into `results`."""

    async def run() -> str:
        statuses: Counter[str] = Counter()
        async with client_of(target) as client:
            seeds = itertools.count(1)
            tasks = [
                asyncio.create_task(attack(client, target[2], kind, seeds, statuses))
                for _ in range(ATTACKERS)
            ]
            while not stop.is_set():
                await asyncio.sleep(0.1)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return ", ".join(f"{what}: {count}" for what, count in statuses.items())

    results.put(asyncio.run(run()))


def client_of(target: Target) -> httpx.AsyncClient:
    """Return a client of the endpoint."""
    headers = {"authorization": f"Bearer {target[1]}"}
    return httpx.AsyncClient(base_url=target[0], headers=headers, timeout=120, verify=False)


async def measure(target: Target, kind: str, seconds: float) -> dict[str, float | str]:
    """Return the figures of one kind."""
    ttfts, gaps, seeds = list[float](), list[float](), itertools.count(1)
    async with client_of(target) as client:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            first, *rest = await stream(client, target[2], next(seeds))
            ttfts.append(first)
            gaps += rest
    figures: dict[str, float | str] = {
        f"gap_p50_ms_{kind}": round(median(gaps), 1),
        f"gap_p99_ms_{kind}": round(float(np.percentile(gaps, 99)), 1),
        f"gap_max_ms_{kind}": round(max(gaps), 1),
        f"ttft_max_ms_{kind}": round(max(ttfts), 1),
    }
    print(json.dumps(figures), flush=True)
    return figures


async def stream(client: httpx.AsyncClient, model: str, seed: int) -> list[float]:
    """Return the time to the first token and the gaps of one stream, in ms."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": f"{seed} What is continuous batching?"}],
        "max_tokens": 100,
        "ignore_eos": True,
        "stream": True,
    }
    times = [time.perf_counter()]
    async with client.stream("POST", "/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if '"content"' in line:
                times.append(time.perf_counter())
    return [1e3 * (after - before) for before, after in itertools.pairwise(times)]


async def attack(
    client: httpx.AsyncClient, model: str, kind: str, seeds: Iterator[int], statuses: Counter[str]
) -> None:
    """Send bodies of a kind, each with a patience of two seconds, until cancelled."""
    while True:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": "x"}],
            "max_tokens": 8,
            **KINDS[kind](next(seeds)),
        }
        try:
            answer = await client.post("/chat/completions", json=body, timeout=PATIENCE_S)
            statuses[str(answer.status_code)] += 1
        except httpx.TimeoutException:
            statuses["left"] += 1
        await asyncio.sleep(0.05)


if __name__ == "__main__":
    main()
