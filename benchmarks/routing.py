"""Prefix-cache hits and TTFT of routing policies, on a load whose prompts share prefixes.

Two replicas of the embedded model run on separate nodes, each with a cache for half of the
prefixes. The load is the same for each policy except for its prefixes, so that no policy finds what
another has cached. `hit_rate_*` is the share of prompt tokens that the engines found in their
caches, by their own counters; `ttft_ms_*` is the median.
"""

from __future__ import annotations

import argparse
import asyncio
import time
import urllib.request
from typing import Any

from _nodes import nodes
from _report import report
from _vllm import prepare

import workbench as wb

POLICIES = ("round_robin", "power_of_two", "prefix_aware")
WORKERS = {name: {"num_cpus": 1} for name in ("one", "two", "three")}
PREFIXES, PREFIX_TOKENS = 16, 384


def spec(routing: Any) -> wb.ServiceSpec:
    """Return the service with one policy. Only the routing changes, so the replicas remain."""
    model = wb.ModelSpec(
        routing=routing,
        max_model_len=512,
        kv_cache_gib=0.25,
        # Blocks of 128 tokens for half of the prefixes, so that the choice of replica matters.
        engine_kwargs={"num_gpu_blocks_override": 48},
        scaling=wb.ScalingSpec(min_replicas=2, max_replicas=2, target_ongoing_requests=8),
    )
    return wb.ServiceSpec(name="routing", port=0, model=model, start_timeout_s=480)


def load(seed: int, requests: int) -> wb.LoadSpec:
    """Return a load of prompts that each have a shared prefix and some tokens of their own."""
    prompts = wb.RandomPrompts(
        input=PREFIX_TOKENS + 16,
        output=16,
        shared_prefix_tokens=PREFIX_TOKENS,
        prefixes=PREFIXES,
    )
    return wb.LoadSpec(
        arrivals=wb.ClosedLoop(max_concurrency=6), prompts=prompts, count=requests, seed=seed
    )


def main() -> None:
    """Measure each policy on the same two replicas, and print the result as the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=240, help="requests for each policy")
    options = parser.parse_args()
    prepare()
    figures: dict[str, float | int | str | None] = {}
    with nodes(WORKERS) as cluster:
        # Serve must start with the policy that needs the most of its proxy.
        endpoint = wb.deploy(spec("prefix_aware"), address=cluster.address)
        for seed, policy in enumerate(POLICIES):
            endpoint = wb.deploy(spec(policy))
            figures |= measure(endpoint, policy, load(seed, options.requests))
        endpoint.delete()
    goals = {"hit_rate_gain": {"min": 0.1}}
    figures["hit_rate_gain"] = round(
        float(figures["hit_rate_prefix_aware"] or 0) - float(figures["hit_rate_round_robin"] or 0),
        3,
    )
    report("routing", figures, goals)


def measure(endpoint: wb.Endpoint, policy: str, load: wb.LoadSpec) -> dict[str, float]:
    """Send the load, and return the figures of the policy."""
    before = counters()
    result = asyncio.run(_send(endpoint, load))
    after = counters()
    queries, hits = (after[name] - before[name] for name in ("queries", "hits"))
    summary = result.summary()
    replicas = {r.replica for r in result.records}
    print(
        f"{policy}: {hits:.0f} of {queries:.0f} tokens cached, {len(replicas)} replicas", flush=True
    )
    return {
        f"hit_rate_{policy}": round(hits / queries, 3),
        f"ttft_ms_{policy}": round(summary.median_ttft_ms or 0.0, 1),
        f"failed_{policy}": summary.failed,
    }


async def _send(endpoint: wb.Endpoint, load: wb.LoadSpec) -> Any:
    return await wb.start_load(endpoint, load, progress=None)


def counters() -> dict[str, float]:
    """Return the prefix-cache counters of all engines together, once they no longer change."""
    last = None
    while (current := _read_counters()) != last:
        last = current
        time.sleep(3)
    return current


def _read_counters() -> dict[str, float]:
    import ray

    totals = {"queries": 0.0, "hits": 0.0}
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(url, timeout=30) as response:
            for line in response.read().decode().splitlines():
                for name in totals:
                    if line.startswith(f"ray_vllm_prefix_cache_{name}"):
                        totals[name] += float(line.rpartition(" ")[2])
    return totals


if __name__ == "__main__":
    main()
