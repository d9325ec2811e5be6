"""What composing costs: a pipeline without and with a guardrail, against the direct path.

All three serve the same model on one cluster and stay up; they are measured in turn, A B C A B C,
so that a drift of the machine's speed meets each. The client is `vllm bench serve`'s own code. Each
ratio is the median of the ratios within a round, `_low` and `_high` the extremes; each round has
prompts of its own, the same for all.

`guardrail_p50_ms` is the median time of the guardrail's look at a prompt of 200 words, by the
server's own clock, the way to its deployment and back included; one request at a time. Every
fourth prompt holds an e-mail address and a card number.
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
    "composed_ratio_16": {"min": 0.80},
    "guarded_ratio_16": {"min": 0.70},
    "guardrail_p50_ms": {"max": 5},
}
STREAMS = 16
PERSONAL = "Write to jane.roe@example.com or pay with 4111 1111 1111 1111."
Round = dict[str, dict[str, Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the measurement may be told."""
    add_model_arguments(parser)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=12 * STREAMS, help="requests a run")
    parser.add_argument("--looks", type=int, default=60, help="prompts of 200 words")


def run(options: argparse.Namespace) -> dict[str, float]:
    """Bring the three services up on one cluster, measure, and end them."""
    # Nothing may be shed or wait at a limit of ours.
    model = model_spec(options, scaling=wb.ScalingSpec(max_ongoing_requests=256))
    with ExitStack() as stack:
        direct = stack.enter_context(wb.deploy(wb.ServiceSpec(name="direct", port=0, model=model)))
        key = direct.api_key.get_secret_value()
        ends = {"direct": direct}
        for name, guardrail in (("composed", None), ("guarded", wb.guardrail.PresidioGuardrail())):
            spec = wb.PipelineSpec(
                name=name, route_prefix=f"/{name}", port=0, models=(model,), guardrail=guardrail
            )
            ends[name] = stack.enter_context(wb.deploy(spec, api_key=key))
        client = stack.enter_context(Client(model, key))
        figures = compare(client, ends, options.repeats, options.prompts)
        return figures | asyncio.run(looks(ends["guarded"], options.looks))


def compare(
    client: Client, ends: dict[str, wb.Endpoint], repeats: int, prompts: int
) -> dict[str, float]:
    """Throughput at 16 streams and TTFT at one; the first round warms up and is not kept."""
    rounds: list[tuple[Round, Round]] = []
    for repeat in range(repeats + 1):
        many, one = (
            {
                name: client.measure(end.base_url.removesuffix("/v1"), streams, number, seed)
                for name, end in ends.items()
            }
            for streams, number, seed in ((STREAMS, prompts, repeat), (1, 8, 1000 + repeat))
        )
        print(f"round {repeat}: {said(many, one)}", flush=True)
        rounds.append((many, one))
    return summary(rounds[1:])


def said(many: Round, one: Round) -> str:
    """One round in words."""
    return ", ".join(
        f"{name} {many[name]['output_throughput']:.0f} tokens/s and TTFT "
        f"{one[name]['median_ttft_ms']:.1f} ms alone"
        for name in many
    )


def summary(rounds: list[tuple[Round, Round]]) -> dict[str, float]:
    """Medians of each side and of the ratios to the direct path."""
    figures = {}
    for name in rounds[0][0]:
        rates = [many[name]["output_throughput"] for many, _ in rounds]
        figures[f"throughput_{name}_{STREAMS}"] = round(median(rates), 1)
        alone = [one[name]["median_ttft_ms"] for _, one in rounds]
        figures[f"ttft_{name}_1"] = round(median(alone), 2)
        if name != "direct":
            ratios = [
                r / many["direct"]["output_throughput"]
                for r, (many, _) in zip(rates, rounds, strict=True)
            ]
            figures[f"{name}_ratio_{STREAMS}"] = round(median(ratios), 3)
            figures[f"{name}_ratio_{STREAMS}_low"] = round(min(ratios), 3)
            figures[f"{name}_ratio_{STREAMS}_high"] = round(max(ratios), 3)
    return figures


async def looks(end: wb.Endpoint, number: int) -> dict[str, float]:
    """The guardrail's time for prompts of 200 words, and for the answers of 64 tokens to them."""
    rng, clock = Random(5), wb.client.start_clock()
    words = [word for term in load_glossary() for word in term.definition.split()]
    records = []
    for count in range(number + 5):
        extra = PERSONAL.split() if count % 4 == 0 else []
        prompt = " ".join(rng.sample(words, 200 - len(extra)) + extra)
        records.append(
            await wb.client.stream_chat(
                end.async_client,
                model=end.model_id,
                messages=prompt,
                max_tokens=64,
                ignore_eos=True,
                clock=clock,
            )
        )
    stages = [record.stages or {} for record in records[5:] if record.status == "ok"]
    figures = {}
    for figure, stage in (("guardrail", "guardrail_in"), ("guardrail_answer", "guardrail_out")):
        values = sorted(ms for told in stages if (ms := told.get(stage)) is not None)
        figures[f"{figure}_p50_ms"] = round(median(values), 2)
        figures[f"{figure}_p95_ms"] = round(values[int(0.95 * (len(values) - 1))], 2)
    return figures
