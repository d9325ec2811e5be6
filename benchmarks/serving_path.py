"""What our serving path costs: the same engine arguments bare and behind our endpoint.

Both servers stay up and are measured in turn, A B A B, so that a drift of the machine's speed meets
both; the client is `vllm bench serve`'s own code. Medians over the repeats; each ratio is the
median of the ratios pair by pair, `_low` and `_high` the extremes. Each pair has prompts of its
own, the same for both sides.

On one GPU the engines share its memory (`--gpu-share` of it each). `--executors` are bare vLLM's,
a server each: Ray Serve LLM takes `ray` on a GPU and `mp` on a CPU. Where there are several, each
pair is taken with the one that was faster in it (more tokens/s, or the lower TTFT).
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from statistics import median
from typing import Any

from _report import Goal, report
from _vllm import BareServer, Client, add_model_arguments, model_spec, prepare

import workbench as wb

GOALS: dict[str, dict[str, Goal]] = {
    "cpu": {"throughput_ratio_16": {"min": 0.90}, "ttft_ratio_1": {"max": 1.6}},
    "gpu": {
        "throughput_ratio_32": {"min": 0.97},
        "throughput_ratio_128": {"min": 0.97},
        "ttft_extra_ms_1": {"max": 5},
    },
}
METRICS = {"throughput": ("output_throughput", max), "ttft": ("median_ttft_ms", min)}
Results = dict[str, list[dict[str, Any]]]


def main() -> None:
    """Measure, print a line a repeat, and the result as the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16])
    executors = ["default", "ray", "mp", "uni"]
    parser.add_argument("--executors", nargs="+", default=["default"], choices=executors)
    parser.add_argument("--gpu-share", type=float, help="of the card, for each engine")
    parser.add_argument("--kv-cache-gib", type=float, default=4, help="of each engine on a GPU")
    options = parser.parse_args()
    prepare()
    figures = run(options)
    goals = {name: goal for name, goal in GOALS[options.accelerator].items() if name in figures}
    settings = {"executors": " ".join(options.executors), "repeats": options.repeats}
    report("serving_path", settings | figures, goals)


def run(options: argparse.Namespace) -> dict[str, float]:
    """Bring all servers up, measure at each number of streams, and end them."""
    # Nothing may be shed: bare vLLM sheds nothing.
    scaling = wb.ScalingSpec(max_ongoing_requests=max(256, *options.streams))
    share = options.gpu_share or round(0.96 / (1 + len(options.executors)), 2)
    on_gpu = {"num_gpus": share} if options.accelerator == "gpu" else {}
    model = model_spec(options, scaling=scaling, **on_gpu)
    if on_gpu:
        # Of a given size: vLLM would measure the memory while the other engines take theirs.
        cache = {"kv_cache_memory_bytes": int(options.kv_cache_gib * 2**30)}
        model = model.model_copy(update={"engine_kwargs": model.engine_kwargs | cache})
    figures: dict[str, float] = {}
    with ExitStack() as stack:
        bare = {}
        for name in options.executors:
            executor = None if name == "default" else name
            side = "bare" if executor is None else f"bare_{name}"
            bare[side] = stack.enter_context(BareServer(model, executor))
        endpoint = stack.enter_context(wb.deploy(wb.ServiceSpec(port=0, model=model)))
        for server in bare.values():
            server.wait()
        urls = {side: server.base_url for side, server in bare.items()}
        urls["ours"] = endpoint.base_url.removesuffix("/v1")
        client = stack.enter_context(Client(model, endpoint.api_key.get_secret_value()))
        for streams in options.streams:
            figures |= compare(client, urls, streams, options.repeats)
    return figures


def compare(client: Client, urls: dict[str, str], streams: int, repeats: int) -> dict[str, float]:
    """The figures at one number of streams; the first pair of runs warms up and is not kept."""
    prompts = max(256, 4 * streams) if streams > 1 else 24
    results: Results = {side: [] for side in urls}
    for repeat in range(repeats + 1):
        seed = 1000 * streams + repeat
        pair = {side: client.measure(url, streams, prompts, seed) for side, url in urls.items()}
        if repeat:
            for side, result in pair.items():
                results[side].append(result)
            print(f"{streams} streams, repeat {repeat}: {said(pair)}", flush=True)
    return summary(results, streams)


def said(pair: dict[str, dict[str, Any]]) -> str:
    """One pair of runs in words."""
    return ", ".join(
        f"{side} {r['output_throughput']:.0f} tokens/s and TTFT {r['median_ttft_ms']:.1f} ms"
        for side, r in pair.items()
    )


def summary(results: Results, streams: int) -> dict[str, float]:
    """Medians of each side, and of the ratios and differences to the faster bare one, by pair."""
    figures = {}
    for name, (metric, better) in METRICS.items():
        sides = {side: [r[metric] for r in pairs] for side, pairs in results.items()}
        for side, values in sides.items():
            figures[f"{name}_{side}_{streams}"] = round(median(values), 2)
        ours = sides.pop("ours")
        bare = [better(values) for values in zip(*sides.values(), strict=True)]
        ratios = [o / b for o, b in zip(ours, bare, strict=True)]
        figures[f"{name}_ratio_{streams}"] = round(median(ratios), 3)
        figures[f"{name}_ratio_{streams}_low"] = round(min(ratios), 3)
        figures[f"{name}_ratio_{streams}_high"] = round(max(ratios), 3)
    extra = [o - b for o, b in zip(ours, bare, strict=True)]  # of the last metric, TTFT
    figures[f"ttft_extra_ms_{streams}"] = round(median(extra), 2)
    return figures


if __name__ == "__main__":
    main()
