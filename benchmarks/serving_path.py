"""Cost of our serving path: the same engine arguments on bare vLLM and behind our endpoint.

Both servers run at the same time and are measured in turn, A B A B, so that drifting machine speed
affects both. The client is the code of `vllm bench serve`. Figures are medians over the repeats. A
ratio is the median of the ratios of pairs; `_low` and `_high` are the extremes. Each pair has its
own prompts, which are the same for both sides.

On one GPU the engines share its memory (`--gpu-share` each). `--executors` are those of bare vLLM,
with one server each: Ray Serve LLM uses `ray` on a GPU and `mp` on a CPU. With several, each pair
uses the faster one (more tokens/s, or the lower TTFT).
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
    """Measure, and print a line per repeat and the result as the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16])
    executors = ["default", "ray", "mp", "uni"]
    parser.add_argument("--executors", nargs="+", default=["default"], choices=executors)
    parser.add_argument("--gpu-share", type=float, help="share of the GPU for each engine")
    parser.add_argument(
        "--kv-cache-gib", type=float, default=4, help="KV cache of each engine on a GPU"
    )
    options = parser.parse_args()
    prepare()
    figures = run(options)
    goals = {name: goal for name, goal in GOALS[options.accelerator].items() if name in figures}
    settings = {"executors": " ".join(options.executors), "repeats": options.repeats}
    report("serving_path", settings | figures, goals)


def run(options: argparse.Namespace) -> dict[str, float]:
    """Start all servers, measure at each number of streams, and stop them."""
    # No request may be shed, as bare vLLM sheds none.
    scaling = wb.ScalingSpec(max_ongoing_requests=max(256, *options.streams))
    share = options.gpu_share or round(0.96 / (1 + len(options.executors)), 2)
    on_gpu = {"num_gpus": share} if options.accelerator == "gpu" else {}
    model = model_spec(options, scaling=scaling, **on_gpu)
    if on_gpu:
        # A fixed size: vLLM would measure free memory while the other engines allocate theirs.
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
    """Return the figures at one number of streams. The first pair of runs is a warm-up."""
    prompts = max(256, 4 * streams) if streams > 1 else 24
    results: Results = {side: [] for side in urls}
    for repeat in range(repeats + 1):
        seed = 1000 * streams + repeat
        pair = {side: client.measure(url, streams, prompts, seed) for side, url in urls.items()}
        if repeat:
            for side, result in pair.items():
                results[side].append(result)
            print(f"{streams} streams, repeat {repeat}: {describe(pair)}", flush=True)
    return summary(results, streams)


def describe(pair: dict[str, dict[str, Any]]) -> str:
    """Return a line about one pair of runs."""
    return ", ".join(
        f"{side} {r['output_throughput']:.0f} tokens/s, TTFT {r['median_ttft_ms']:.1f} ms"
        for side, r in pair.items()
    )


def summary(results: Results, streams: int) -> dict[str, float]:
    """Return medians of each side, and of the ratios and differences to the faster bare server."""
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
    extra = [o - b for o, b in zip(ours, bare, strict=True)]  # of the last metric, which is TTFT
    figures[f"ttft_extra_ms_{streams}"] = round(median(extra), 2)
    return figures


if __name__ == "__main__":
    main()
