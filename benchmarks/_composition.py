"""Cost of a pipeline, without and with a guardrail, compared with the direct path.

All three services run the same model on one cluster at the same time. They are measured in turn,
A B C A B C, so that drifting machine speed affects each alike. The client is the code of
`vllm bench serve`. A ratio is the median of the ratios within a round; `_low` and `_high` are the
extremes. Each round has its own prompts, which are the same for all services.

`guardrail_p50_ms` is the median time that the guardrail needs for a prompt of 200 words, one
request at a time, by the server's clock and including the call to its deployment. Every fourth
prompt contains an e-mail address and a card number.
"""

from __future__ import annotations

import argparse
import asyncio
from contextlib import ExitStack
from random import Random
from statistics import median
from typing import Any

from _report import Goal
from _vllm import Client, add_model_arguments, model_spec

import workbench as wb
from tools.tiny_model.phrasing import load_glossary

GOALS: dict[str, Goal] = {
    "composed_ratio_16": {"min": 0.90},
    "guarded_ratio_16": {"min": 0.80},
    "guardrail_p50_ms": {"max": 5},
}
STREAMS = 16
PERSONAL = "Write to jane.roe@example.com or pay with 4111 1111 1111 1111."
Round = dict[str, dict[str, Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this measurement."""
    add_model_arguments(parser)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=12 * STREAMS, help="requests per run")
    parser.add_argument(
        "--checks", type=int, default=60, help="prompts of 200 words for the guardrail"
    )


def run(options: argparse.Namespace) -> dict[str, float]:
    """Deploy the three services on one cluster, measure, and delete them."""
    # No request may be shed or wait at a limit.
    model = model_spec(options, scaling=wb.ScalingSpec(max_ongoing_requests=256))
    with ExitStack() as stack:
        direct = stack.enter_context(wb.deploy(wb.ServiceSpec(name="direct", port=0, model=model)))
        key = direct.api_key.get_secret_value()
        endpoints = {"direct": direct}
        for name, guardrail in (("composed", None), ("guarded", wb.guardrail.PresidioGuardrail())):
            spec = wb.PipelineSpec(
                name=name, route_prefix=f"/{name}", port=0, models=(model,), guardrail=guardrail
            )
            endpoints[name] = stack.enter_context(wb.deploy(spec, api_key=key))
        client = stack.enter_context(Client(model, key))
        figures = compare(client, endpoints, options.repeats, options.prompts)
        return figures | asyncio.run(guardrail_times(endpoints["guarded"], options.checks))


def compare(
    client: Client, endpoints: dict[str, wb.Endpoint], repeats: int, prompts: int
) -> dict[str, float]:
    """Measure throughput at 16 streams and TTFT at one. The first round is a warm-up."""
    rounds: list[tuple[Round, Round]] = []
    for repeat in range(repeats + 1):
        loaded, single = (
            {
                name: client.measure(endpoint.base_url.removesuffix("/v1"), streams, count, seed)
                for name, endpoint in endpoints.items()
            }
            for streams, count, seed in ((STREAMS, prompts, repeat), (1, 8, 1000 + repeat))
        )
        print(f"round {repeat}: {describe(loaded, single)}", flush=True)
        rounds.append((loaded, single))
    return summary(rounds[1:])


def describe(loaded: Round, single: Round) -> str:
    """Return a line about one round."""
    return ", ".join(
        f"{name} {loaded[name]['output_throughput']:.0f} tokens/s, TTFT "
        f"{single[name]['median_ttft_ms']:.1f} ms at one stream"
        for name in loaded
    )


def summary(rounds: list[tuple[Round, Round]]) -> dict[str, float]:
    """Return the medians of each service and of the ratios to the direct path."""
    figures = {}
    for name in rounds[0][0]:
        rates = [loaded[name]["output_throughput"] for loaded, _ in rounds]
        figures[f"throughput_{name}_{STREAMS}"] = round(median(rates), 1)
        ttfts = [single[name]["median_ttft_ms"] for _, single in rounds]
        figures[f"ttft_{name}_1"] = round(median(ttfts), 2)
        if name != "direct":
            ratios = [
                rate / loaded["direct"]["output_throughput"]
                for rate, (loaded, _) in zip(rates, rounds, strict=True)
            ]
            figures[f"{name}_ratio_{STREAMS}"] = round(median(ratios), 3)
            figures[f"{name}_ratio_{STREAMS}_low"] = round(min(ratios), 3)
            figures[f"{name}_ratio_{STREAMS}_high"] = round(max(ratios), 3)
    return figures


async def guardrail_times(endpoint: wb.Endpoint, number: int) -> dict[str, float]:
    """Measure the guardrail's time for prompts of 200 words and for their 64-token answers."""
    rng, clock = Random(5), wb.client.start_clock()
    words = [word for term in load_glossary() for word in term.definition.split()]
    records = []
    for count in range(number + 5):
        extra = PERSONAL.split() if count % 4 == 0 else []
        prompt = " ".join(rng.sample(words, 200 - len(extra)) + extra)
        records.append(
            await wb.client.stream_chat(
                endpoint.async_client,
                model=endpoint.model_id,
                messages=prompt,
                max_tokens=64,
                ignore_eos=True,
                clock=clock,
            )
        )
    stages = [record.stages or {} for record in records[5:] if record.status == "ok"]
    figures = {}
    for figure, stage in (("guardrail", "guardrail_in"), ("guardrail_answer", "guardrail_out")):
        values = sorted(ms for times in stages if (ms := times.get(stage)) is not None)
        figures[f"{figure}_p50_ms"] = round(median(values), 2)
        figures[f"{figure}_p95_ms"] = round(values[int(0.95 * (len(values) - 1))], 2)
    return figures
