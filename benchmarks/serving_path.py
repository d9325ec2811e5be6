"""What our serving path costs: the same engine arguments bare and behind our endpoint.

Both servers stay up and are measured in turn, A B A B, so that a drift of the machine's speed meets
both; the client is `vllm bench serve`'s own code. Medians over the repeats; each ratio is the
median of the ratios pair by pair.
"""

from __future__ import annotations

import argparse
import sys
from statistics import median
from typing import Any

from _report import report
from _vllm import BareServer, Client

import workbench as wb

GOALS = {"throughput_ratio_16": {"min": 0.90}, "ttft_ratio_1": {"max": 1.6}}
METRICS = {"throughput": "output_throughput", "ttft": "median_ttft_ms"}
Results = dict[str, list[dict[str, Any]]]


def main() -> int:
    """Measure, print a line a repeat, and the result as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--source", default="tiny")
    parser.add_argument("--accelerator", default="cpu", choices=["cpu", "gpu"])
    options = parser.parse_args()
    scaling = wb.ScalingSpec(max_ongoing_requests=256)
    model = wb.ModelSpec(
        source=options.source, accelerator=options.accelerator, max_model_len=1024, scaling=scaling
    )
    spec = wb.ServiceSpec(port=0, model=model)
    with wb.deploy(spec) as endpoint, BareServer(model) as bare, Client(model) as client:
        bare.wait()
        url, key = endpoint.base_url.removesuffix("/v1"), endpoint.api_key.get_secret_value()
        sides = {"bare": (bare.base_url, "none"), "ours": (url, key)}
        figures: dict[str, float] = {}
        for streams in options.streams:
            figures |= compare(client, sides, streams, options.repeats)
    return 0 if report("serving_path", figures, GOALS) else 1


def compare(
    client: Client, sides: dict[str, tuple[str, str]], streams: int, repeats: int
) -> dict[str, float]:
    """The figures at one number of streams; the first pair of runs warms up and is not kept."""
    prompts = 16 * streams if streams > 1 else 24
    results: Results = {side: [] for side in sides}
    for repeat in range(repeats + 1):
        pair = {s: client.measure(url, key, streams, prompts) for s, (url, key) in sides.items()}
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
    """Medians of each side and of the ratios pair by pair."""
    figures = {}
    for name, metric in METRICS.items():
        bare, ours = ([r[metric] for r in results[side]] for side in ("bare", "ours"))
        ratios = [o / b for o, b in zip(ours, bare, strict=True)]
        figures[f"{name}_ratio_{streams}"] = round(median(ratios), 3)
        figures[f"{name}_bare_{streams}"] = round(median(bare), 2)
        figures[f"{name}_ours_{streams}"] = round(median(ours), 2)
    return figures


if __name__ == "__main__":
    sys.exit(main())
