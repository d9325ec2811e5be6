"""Time to first token that the gate adds, on one engine, with and without the gate in turn."""

from __future__ import annotations

import time
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


def auth_ttft(pairs: int) -> dict[str, float]:
    """Return the median TTFT with and without the gate, and of the differences, in ms.

    Each request streams one short answer, one request at a time. The order of a pair alternates.
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
    return figures(times)


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


def figures(times: dict[str, list[float]]) -> dict[str, float]:
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
