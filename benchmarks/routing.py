"""Routing policies on a load whose prompts share prefixes: prefix-cache hits and TTFT.

Two replicas of the embedded model on nodes of their own, whose cache holds half of the prefixes;
the same load for each policy, with prefixes of its own, so that none finds what another left.
`hit_rate_*` is the share of prompt tokens that the engines found in their caches, by their own
counters; `ttft_ms_*` the median.
"""

from __future__ import annotations

import asyncio
import time
import urllib.request
from typing import Any

from _nodes import nodes
from _report import report

import workbench as wb

POLICIES = ("round_robin", "power_of_two", "prefix_aware")
WORKERS = {name: {"num_cpus": 1} for name in ("one", "two", "three")}
PREFIXES, PREFIX_TOKENS = 16, 384


def spec(routing: Any) -> wb.ServiceSpec:
    """The service under one policy; only the routing changes, so the replicas stay."""
    model = wb.ModelSpec(
        routing=routing,
        max_model_len=512,
        kv_cache_gib=0.25,
        # Of 128 tokens: about half of the prefixes, so that it counts which replica has which.
        engine_kwargs={"num_gpu_blocks_override": 48},
        scaling=wb.ScalingSpec(min_replicas=2, max_replicas=2, target_ongoing_requests=8),
    )
    return wb.ServiceSpec(name="routing", port=0, model=model, start_timeout_s=480)


def load(seed: int) -> wb.LoadSpec:
    """Every prompt is one of the shared prefixes and some tokens of its own."""
    prompts = wb.RandomPrompts(
        input=PREFIX_TOKENS + 16,
        output=16,
        shared_prefix_tokens=PREFIX_TOKENS,
        prefixes=PREFIXES,
    )
    return wb.LoadSpec(
        arrivals=wb.ClosedLoop(max_concurrency=6), prompts=prompts, count=240, seed=seed
    )


def main() -> None:
    """Each policy in turn on the same two replicas, and the result as the last line."""
    figures: dict[str, float | int | str | None] = {}
    with nodes(WORKERS) as cluster:
        # Serve starts with the policy that needs most of its proxy.
        endpoint = wb.deploy(spec("prefix_aware"), address=cluster.address)
        for seed, policy in enumerate(POLICIES):
            endpoint = wb.deploy(spec(policy))
            figures |= measured(endpoint, policy, seed)
        endpoint.delete()
    goals = {"hit_rate_gain": {"min": 0.1}}
    figures["hit_rate_gain"] = round(
        float(figures["hit_rate_prefix_aware"] or 0) - float(figures["hit_rate_round_robin"] or 0),
        3,
    )
    report("routing", figures, goals)


def measured(endpoint: wb.Endpoint, policy: str, seed: int) -> dict[str, float]:
    """One policy's figures."""
    before = counters()
    result = asyncio.run(_send(endpoint, seed))
    after = counters()
    asked, hit = (after[name] - before[name] for name in ("queries", "hits"))
    summary = result.summary()
    spread = {r.replica for r in result.records}
    print(f"{policy}: {hit:.0f} of {asked:.0f} tokens found, {len(spread)} replicas", flush=True)
    return {
        f"hit_rate_{policy}": round(hit / asked, 3),
        f"ttft_ms_{policy}": round(summary.median_ttft_ms or 0.0, 1),
        f"failed_{policy}": summary.failed,
    }


async def _send(endpoint: wb.Endpoint, seed: int) -> Any:
    return await wb.start_load(endpoint, load(seed), progress=None)


def counters() -> dict[str, float]:
    """Prefix-cache counters of all engines together, once they stand still."""
    last = None
    while (found := _read()) != last:
        last = found
        time.sleep(3)
    return found


def _read() -> dict[str, float]:
    import ray

    totals = {"queries": 0.0, "hits": 0.0}
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(url, timeout=30) as answer:
            for line in answer.read().decode().splitlines():
                for name in totals:
                    if line.startswith(f"ray_vllm_prefix_cache_{name}"):
                        totals[name] += float(line.rpartition(" ")[2])
    return totals


if __name__ == "__main__":
    main()
