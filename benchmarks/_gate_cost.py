"""What the gate adds to the time to first token: one engine, with and past it, in turn."""

from __future__ import annotations

import time
from statistics import median, quantiles
from unittest.mock import patch

import httpx

import workbench as wb

TENANT = wb.Tenant(
    name="bench",
    requests_per_minute=100_000,
    tokens_per_minute=100_000_000,
    max_concurrent_requests=64,
)
"""Every kind of quota is there and none is reached."""


def auth_ttft(pairs: int) -> dict[str, float]:
    """Median TTFT through the gate and past it, and of their difference pair by pair, in ms.

    Requests are streams of one short answer, one at a time; which side goes first alternates.
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
                taken = ttft_ms(client, bench, sides[side], pair)
                if pair >= 10:  # the first warm up
                    times[side].append(taken)
    return figures(times)


def ttft_ms(client: httpx.Client, target: wb.Remote, headers: dict[str, str], seed: int) -> float:
    """From the send of a request to the first event of its stream."""
    words = f"{seed} What is continuous batching, and when does it help? " * 4
    body = {
        "model": target.model_id,
        "messages": [{"role": "user", "content": words}],
        "max_tokens": 4,
        "stream": True,
    }
    url = f"{target.base_url}/chat/completions"
    began = time.perf_counter()
    with client.stream("POST", url, json=body, headers=headers) as answer:
        answer.raise_for_status()
        events = answer.iter_raw()
        next(events)
        taken = (time.perf_counter() - began) * 1e3
        for _ in events:
            pass
    return taken


def figures(times: dict[str, list[float]]) -> dict[str, float]:
    """The medians, and the quartiles of the differences."""
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
