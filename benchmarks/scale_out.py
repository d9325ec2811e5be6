"""Tokens per second of 1 to N replicas, next to vLLM's own ways to use N cards.

`ours` is a service with each number of `--replicas`. `data_parallel` is one bare server with
`--data-parallel-size N`, and `router` is vllm-router in front of N bare servers, with N the largest
number. The client is the code of `vllm bench serve`, with `--streams` streams for each card.
`_sides.py` says how to measure each side in a run of its own. Without a GPU only `ours` runs.

`efficiency_N` is the throughput of N replicas over N times that of one. `ratio_to_*` is ours over
that of the other side.
"""

from __future__ import annotations

import argparse
import asyncio
from contextlib import ExitStack
from statistics import median
from typing import Any

from _report import Goal
from _sides import Figures, add_side_arguments, report_sides
from _vllm import BareServer, Client, Router, add_model_arguments, model_spec, prepare

import workbench as wb
from serving.spec.model import ModelSpec

SIDES = ("ours", "data_parallel", "router")
KEY = "sk-none-needed-by-bare-vllm"
START_S = 300


def main() -> None:
    """Measure or compare the sides, and print the result as the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_side_arguments(parser, SIDES)
    add_model_arguments(parser)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--streams", type=int, default=8, help="streams for each card")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--input", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--output", type=int, default=64, help="tokens of an answer")
    options = parser.parse_args()
    prepare()
    functions = {"ours": ours, "data_parallel": data_parallel, "router": router}

    def measure(side: str) -> Figures:
        return functions[side](options, model_spec(options))

    here = SIDES if options.accelerator == "gpu" else SIDES[:1]
    report_sides("scale_out", options, here, measure, compare)


def ours(options: argparse.Namespace, model: ModelSpec) -> Figures:
    """Measure the service with each number of replicas."""
    most = max(options.replicas)
    # No request may be shed, as bare vLLM sheds none.
    scaling = wb.ScalingSpec(
        min_replicas=most, max_replicas=most, max_ongoing_requests=max(256, 4 * options.streams)
    )
    model = model.model_copy(update={"scaling": scaling})
    figures: Figures = {}
    with (
        wb.deploy(wb.ServiceSpec(name="scale", port=0, model=model)) as endpoint,
        Client(model, endpoint.api_key.get_secret_value()) as client,
    ):
        for replicas in sorted(options.replicas, reverse=True):
            endpoint.rescale(min_replicas=replicas, max_replicas=replicas)
            asyncio.run(endpoint.wait_until_scaled(replicas))
            url = endpoint.base_url.removesuffix("/v1")
            figures |= measured(client, url, f"ours_{replicas}", replicas, options)
    return figures


def data_parallel(options: argparse.Namespace, model: ModelSpec) -> Figures:
    """Measure one bare server with an engine on each card."""
    most = max(options.replicas)
    model = model.model_copy(update={"data_parallel_size": most})
    with BareServer(model) as server, Client(model, KEY) as client:
        server.wait(START_S)
        return measured(client, server.base_url, f"data_parallel_{most}", most, options)


def router(options: argparse.Namespace, model: ModelSpec) -> Figures:
    """Measure vllm-router in front of a bare server on each card."""
    most = max(options.replicas)
    with ExitStack() as stack:
        on_gpu = options.accelerator == "gpu"
        servers = [
            stack.enter_context(
                BareServer(model, variables={"CUDA_VISIBLE_DEVICES": str(card)} if on_gpu else {})
            )
            for card in range(most)
        ]
        for server in servers:
            server.wait(START_S)
        before = stack.enter_context(Router([server.base_url for server in servers]))
        before.wait(START_S)
        client = stack.enter_context(Client(model, KEY))
        return measured(client, before.base_url, f"router_{most}", most, options)


def measured(
    client: Client, url: str, side: str, cards: int, options: argparse.Namespace
) -> Figures:
    """Return the throughput and the TTFT of a side, after a warm-up."""
    streams = options.streams * cards
    results: list[dict[str, Any]] = []
    for repeat in range(options.repeats + 1):
        result = client.measure(
            url, streams, 4 * streams, 1000 * cards + repeat, options.input, options.output
        )
        if repeat:
            results.append(result)
    figures: Figures = {
        f"tokens_per_s_{side}": round(median(r["output_throughput"] for r in results), 1),
        f"ttft_ms_{side}": round(median(r["median_ttft_ms"] for r in results), 1),
    }
    print(side, figures, flush=True)
    return figures


def compare(figures: dict[str, Any]) -> tuple[Figures, dict[str, Goal]]:
    """Return the figures of all sides with efficiencies and ratios, and the goals."""
    rates = {
        int(name.rpartition("_")[2]): rate
        for name, rate in figures.items()
        if name.startswith("tokens_per_s_ours_")
    }
    if not rates:
        return figures, {}
    most = max(rates)
    derived: Figures = {
        f"efficiency_{n}": round(rate / (n * rates[1]), 3)
        for n, rate in rates.items()
        if n > 1 and 1 in rates
    }
    for other in ("router", "data_parallel"):
        if rate := figures.get(f"tokens_per_s_{other}_{most}"):
            derived[f"ratio_to_{other}"] = round(rates[most] / rate, 3)
    goals: dict[str, Goal] = {
        name: {"min": 0.97} for name in derived if name.startswith("efficiency_")
    }
    if "ratio_to_router" in derived:
        goals["ratio_to_router"] = {"min": 1.0}
    return {**figures, **derived}, goals


if __name__ == "__main__":
    main()
