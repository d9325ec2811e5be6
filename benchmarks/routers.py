"""Routing policies on conversations: prefix-cache hits and TTFT of the turns after the first.

The replicas are the same for every policy, except for `kv_aware`, whose engines report their
blocks; it is left out if `ai-dynamo` is not installed. `hit_rate_*` is the share of prompt tokens
that were in a cache, by the servers' own counts, `ttft_ms_*` the median of the turns after the
first. Each policy has its own conversations, so that none finds what another has cached.
"""

from __future__ import annotations

import argparse
import asyncio
from importlib.util import find_spec
from statistics import median
from typing import Any

from _report import report
from _vllm import add_model_arguments, model_spec, prepare

import workbench as wb

# Serve must start with a policy that reads prompts.
POLICIES = ("prefix_aware", "round_robin", "power_of_two", "session")


def main() -> None:
    """Measure each policy on the same replicas, and print the result as the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--conversations", type=int, default=24, help="for each policy")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--input", type=int, default=96, help="tokens of a user's turn")
    parser.add_argument("--output", type=int, default=32, help="tokens of an answer")
    parser.add_argument("--users", type=int, default=3, help="conversations at once, per replica")
    options = parser.parse_args()
    prepare()
    policies = (*POLICIES, "kv_aware") if find_spec("dynamo") else POLICIES
    figures: dict[str, float | int | str | None] = {"replicas": options.replicas}
    for seed, policy in enumerate(policies):
        endpoint = wb.deploy(spec(options, policy))
        figures |= measure(endpoint, policy, load(options, seed))
    endpoint.delete()
    gain = float(figures["hit_rate_session"] or 0) - float(figures["hit_rate_round_robin"] or 0)
    figures["hit_rate_gain_session"] = round(gain, 3)
    report("routers", figures, {"hit_rate_gain_session": {"min": 0.1}})


def spec(options: argparse.Namespace, policy: Any) -> wb.ServiceSpec:
    """Return the service with one policy."""
    model = model_spec(
        options,
        routing=policy,
        scaling=wb.ScalingSpec(
            min_replicas=options.replicas,
            max_replicas=options.replicas,
            target_ongoing_requests=max(1, options.users),
        ),
    )
    kwargs = model.engine_kwargs | {"enable_prompt_tokens_details": True}
    if options.accelerator == "cpu":
        model = model.model_copy(update={"kv_cache_gib": 0.25})
    model = model.model_copy(update={"engine_kwargs": kwargs})
    return wb.ServiceSpec(name="routers", port=0, model=model)


def load(options: argparse.Namespace, seed: int) -> wb.LoadSpec:
    """Return conversations in which the turns of several users alternate."""
    return wb.LoadSpec(
        arrivals=wb.ClosedLoop(max_concurrency=options.users * options.replicas),
        prompts=wb.Conversations(turns=options.turns, input=options.input, output=options.output),
        count=options.conversations,
        seed=seed,
    )


def measure(endpoint: wb.Endpoint, policy: str, load: wb.LoadSpec) -> dict[str, float]:
    """Send the load, and return the figures of the policy."""
    result = asyncio.run(_send(endpoint, load))
    done = [record for record in result.records if record.status == "ok"]
    later = [record for record in done if not record.request_id.endswith("-0")]
    ttft_ms = [
        (record.first_token_s - record.sent_s) * 1e3
        for record in later
        if record.first_token_s is not None and record.sent_s is not None
    ]
    hits = sum(record.cached_tokens or 0 for record in done)
    tokens = sum(record.prompt_tokens or 0 for record in done)
    replicas = {record.replica for record in done}
    print(f"{policy}: {hits} of {tokens} tokens cached, {len(replicas)} replicas", flush=True)
    return {
        f"hit_rate_{policy}": round(hits / tokens, 3) if tokens else 0.0,
        f"ttft_ms_{policy}": round(median(ttft_ms), 1) if ttft_ms else 0.0,
        f"failed_{policy}": len(result.records) - len(done),
    }


async def _send(endpoint: wb.Endpoint, load: wb.LoadSpec) -> Any:
    return await wb.start_load(endpoint, load, progress=None)


if __name__ == "__main__":
    main()
