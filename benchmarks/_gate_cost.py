"""Cost of the gate in TTFT and throughput, on one engine, with and without the gate in turn."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from statistics import median, quantiles
from unittest.mock import patch

import httpx

import workbench as wb
from workbench.endpoints.remote import Remote

TENANT = wb.Tenant(
    name="bench",
    requests_per_minute=100_000,
    tokens_per_minute=100_000_000,
    max_concurrent_requests=64,
)
"""A tenant with every kind of quota, none of which is reached."""


STREAMS, TOKENS = 16, 64


def gate_cost(pairs: int, loaded_pairs: int) -> dict[str, float]:
    """Return the figures of TTFT and of throughput.

    Args:
        pairs: Pairs of requests for TTFT, one short answer at a time.
        loaded_pairs: Pairs of loads of 128 requests, with 16 streams at a time.
    """
    with (
        patch("serving.deploy.deployments.DIRECT_REPLICA", "benchmarks._forked.ForkedReplica"),
        wb.deploy(wb.ServiceSpec(port=0), tenants=[TENANT]) as endpoint,
        httpx.Client(timeout=60, verify=False) as client,
    ):
        bench = endpoint.as_tenant("bench")
        key = {"authorization": f"Bearer {bench.api_key.get_secret_value()}"}
        sides = {"gated": key, "bare": key | {"x-past-the-gate": "1"}}
        times: dict[str, list[float]] = {side: [] for side in sides}
        for pair in range(pairs + 10):
            for side in sorted(sides, reverse=bool(pair % 2)):
                elapsed_ms = ttft_ms(client, bench, sides[side], pair)
                if pair >= 10:  # the first pairs are a warm-up
                    times[side].append(elapsed_ms)
        return ttft_figures(times) | throughput(bench, sides, loaded_pairs)


def throughput(target: Remote, sides: dict[str, dict[str, str]], pairs: int) -> dict[str, float]:
    """Return the ratio of the output tokens/s with the gate to those without."""
    seeds, rates = itertools.count(1_000_000), dict[str, list[float]]({side: [] for side in sides})
    for pair in range(pairs + 1):
        for side in sorted(sides, reverse=bool(pair % 2)):
            rate = asyncio.run(loaded(target, sides[side], seeds))
            if pair:  # the first pair is a warm-up
                rates[side].append(rate)
    ratios = [gated / bare for gated, bare in zip(rates["gated"], rates["bare"], strict=True)]
    low, middle, high = quantiles(ratios, n=4)
    return {
        f"gate_ratio_{STREAMS}": round(middle, 4),
        f"gate_ratio_{STREAMS}_q1": round(low, 4),
        f"gate_ratio_{STREAMS}_q3": round(high, 4),
        f"gate_ratio_{STREAMS}_pairs": pairs,
        f"throughput_gated_{STREAMS}": round(median(rates["gated"]), 1),
        f"throughput_bare_{STREAMS}": round(median(rates["bare"]), 1),
    }


async def loaded(target: Remote, headers: dict[str, str], seeds: Iterator[int]) -> float:
    """Send 8 streams in each of 16 slots, and return the output tokens/s of all."""
    url = f"{target.base_url}/chat/completions"

    async def slot(client: httpx.AsyncClient) -> None:
        for seed in itertools.islice(seeds, 8):
            message = {"role": "user", "content": f"{seed} What is continuous batching? " * 4}
            body = {"model": target.model_id, "messages": [message], "max_tokens": TOKENS}
            body |= {"ignore_eos": True, "stream": True}
            async with client.stream("POST", url, json=body, headers=headers) as response:
                response.raise_for_status()
                async for _ in response.aiter_raw():
                    pass

    async with httpx.AsyncClient(timeout=120, verify=False) as client:
        started = time.perf_counter()
        await asyncio.gather(*(slot(client) for _ in range(STREAMS)))
        return STREAMS * 8 * TOKENS / (time.perf_counter() - started)


def ttft_ms(client: httpx.Client, target: Remote, headers: dict[str, str], seed: int) -> float:
    """Return the time from sending a request to the first event of its stream."""
    question = f"{seed} What is continuous batching, and when does it help? " * 4
    body = {
        "model": target.model_id,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 4,
        "stream": True,
    }
    url = f"{target.base_url}/chat/completions"
    started = time.perf_counter()
    with client.stream("POST", url, json=body, headers=headers) as response:
        response.raise_for_status()
        events = response.iter_raw()
        next(events)
        elapsed_ms = (time.perf_counter() - started) * 1e3
        for _ in events:
            pass
    return elapsed_ms


def ttft_figures(times: dict[str, list[float]]) -> dict[str, float]:
    """Return the medians, and the quartiles of the differences."""
    extra = [gated - bare for gated, bare in zip(times["gated"], times["bare"], strict=True)]
    low, middle, high = quantiles(extra, n=4)
    return {
        "auth_ttft_ms": round(middle, 3),
        "auth_ttft_ms_q1": round(low, 3),
        "auth_ttft_ms_q3": round(high, 3),
        "auth_ttft_gated_ms": round(median(times["gated"]), 3),
        "auth_ttft_bare_ms": round(median(times["bare"]), 3),
        "auth_ttft_pairs": len(extra),
    }
