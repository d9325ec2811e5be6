"""Cost of our serving path: the same engine arguments on bare vLLM and behind our endpoint.

All servers run at the same time and are measured in turn, A B A B, so that drifting machine speed
affects all of them. The client is the code of `vllm bench serve`. Figures are medians over the
repeats. A ratio is the median of the ratios of pairs; `_low` and `_high` are the extremes. Each
pair has its own prompts, which are the same for every side.

- `throughput_ratio_N`, `ttft_ratio_N`, `ttft_extra_ms_N`: ours over, or less, bare vLLM's
- `throughput_over_router_N`, `throughput_over_rust_N` and the same of `ttft`: ours over a peer's
- `front_end_us_SIDE_N`: CPU time per output token of all processes of the front end, which is
  everything between the client and the engine core; `front_end_ratio_N`: ours over bare vLLM's

A load is written N, for N streams of 64 input and 64 output tokens, or N:INPUT/OUTPUT. Peers are
`router`, which is vllm-router before the bare server, and `rust`, a bare server with vLLM's Rust
front end and an engine of its own.

On one GPU the engines share its memory (`--gpu-share` each). `--executors` are those of bare vLLM,
with one server each: Ray Serve LLM uses `ray` on a GPU and `mp` on a CPU. With several, each pair
uses the faster one (more tokens/s, or the lower TTFT).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from statistics import median
from typing import Any, NamedTuple

import psutil
from _front_end import cpu_s, of_bare, of_ours
from _report import Goal, report
from _vllm import (
    TOKENS,
    BareServer,
    Client,
    Router,
    Server,
    add_model_arguments,
    model_spec,
    prepare,
)

import workbench as wb

GOALS: dict[str, dict[str, Goal]] = {
    "cpu": {"throughput_ratio_16": {"min": 1.0}, "ttft_ratio_1": {"max": 1.1}},
    "gpu": {
        "throughput_ratio_32": {"min": 0.98},
        "throughput_ratio_128": {"min": 0.98},
        "throughput_ratio_256": {"min": 1.10},
        "throughput_ratio_512": {"min": 1.25},
        "throughput_over_router_32": {"min": 1.00},
        "throughput_over_router_128": {"min": 1.05},
        "throughput_over_router_256": {"min": 1.15},
        "throughput_over_router_512": {"min": 1.40},
        "throughput_over_rust_256": {"min": 0.93},
        "throughput_over_rust_512": {"min": 0.93},
        "ttft_extra_ms_1": {"max": 3},
        "ttft_ratio_128": {"max": 1.05},
        "front_end_ratio_256": {"max": 0.6},
    },
}
METRICS = {"throughput": ("output_throughput", max), "ttft": ("median_ttft_ms", min)}
PEERS = ("router", "rust")
Results = dict[str, list[dict[str, Any]]]


class Load(NamedTuple):
    """Streams, and the lengths of their requests in tokens."""

    streams: int
    tokens_in: int = TOKENS
    tokens_out: int = TOKENS

    @classmethod
    def parse(cls, text: str) -> Load:
        """Read N or N:INPUT/OUTPUT.

        Raises:
            argparse.ArgumentTypeError: The text is neither.
        """
        streams, _, lengths = text.partition(":")
        try:
            return cls(int(streams), *map(int, lengths.split("/") if lengths else ()))
        except (TypeError, ValueError):
            message = f"a load must be N or N:INPUT/OUTPUT, got {text!r}"
            raise argparse.ArgumentTypeError(message) from None


class Side(NamedTuple):
    """A server under test."""

    url: str
    front_end: Callable[[], list[int]]
    """Returns the ids of the processes of its front end."""


def main() -> None:
    """Measure, and print a line per repeat and the result as the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--streams", type=Load.parse, nargs="+", default=[Load(1), Load(16)], metavar="LOAD"
    )
    parser.add_argument("--peers", nargs="+", default=[], choices=PEERS, help="further sides")
    executors = ["default", "ray", "mp", "uni"]
    parser.add_argument("--executors", nargs="+", default=["default"], choices=executors)
    parser.add_argument(
        "--frontend", default="python", choices=("python", "rust"), help="that of our replicas"
    )
    parser.add_argument("--gpu-share", type=float, help="share of the GPU for each engine")
    parser.add_argument(
        "--kv-cache-gib", type=float, default=4, help="KV cache of each engine on a GPU"
    )
    options = parser.parse_args()
    prepare()
    figures = run(options)
    goals = {name: goal for name, goal in GOALS[options.accelerator].items() if name in figures}
    settings = {
        "executors": " ".join(options.executors),
        "frontend": options.frontend,
        "peers": " ".join(options.peers),
        "repeats": options.repeats,
    }
    report("serving_path", settings | figures, goals)


def run(options: argparse.Namespace) -> dict[str, float]:
    """Start all servers, measure under each load, and stop them."""
    # No request may be shed, as bare vLLM sheds none.
    most = max(load.streams for load in options.streams)
    scaling = wb.ScalingSpec(max_ongoing_requests=max(256, most))
    engines = 1 + len(options.executors) + ("rust" in options.peers)
    share = options.gpu_share or round(0.96 / engines, 2)
    on_gpu = {"num_gpus": share} if options.accelerator == "gpu" else {}
    model = model_spec(options, scaling=scaling, **on_gpu)
    if on_gpu:
        # A fixed size: vLLM would measure free memory while the other engines allocate theirs.
        cache = {"kv_cache_memory_bytes": int(options.kv_cache_gib * 2**30)}
        model = model.model_copy(update={"engine_kwargs": model.engine_kwargs | cache})
    figures: dict[str, float] = {}
    with ExitStack() as stack:
        servers = bare_servers(model, options)
        for server in servers.values():
            stack.enter_context(server)
        ours = model.model_copy(update={"frontend": options.frontend})
        endpoint = stack.enter_context(wb.deploy(wb.ServiceSpec(port=0, model=ours)))
        for server in servers.values():
            server.wait()
        sides = {name: side_of(server) for name, server in servers.items()}
        if "router" in options.peers:
            before = next(iter(servers.values()))
            router = stack.enter_context(Router([before.base_url]))
            router.wait()
            sides["router"] = side_of(router, before)
        sides["ours"] = Side(endpoint.base_url.removesuffix("/v1"), our_front_end)
        client = stack.enter_context(Client(model, endpoint.api_key.get_secret_value()))
        for load in options.streams:
            figures |= compare(client, sides, load, options.repeats)
    return figures


def bare_servers(model: wb.ModelSpec, options: argparse.Namespace) -> dict[str, BareServer]:
    """Return vLLM's own servers, by side; none has started."""
    servers = {}
    for name in options.executors:
        executor = None if name == "default" else name
        servers["bare" if executor is None else f"bare_{name}"] = BareServer(model, executor)
    if "rust" in options.peers:
        servers["rust"] = BareServer(model, rust=True)
    return servers


def side_of(server: Server, behind: Server | None = None) -> Side:
    """Return the side of a server, and of the one behind it."""
    servers = [server, behind] if behind else [server]
    return Side(
        server.base_url,
        lambda: [pid for each in servers for pid in of_bare([each.pid, *each.processes()])],
    )


def our_front_end() -> list[int]:
    """Return the processes of our front end, which descend from this process."""
    return of_ours([process.pid for process in psutil.Process().children(recursive=True)])


def compare(client: Client, sides: dict[str, Side], load: Load, repeats: int) -> dict[str, float]:
    """Return the figures of one load. The first pair of runs is a warm-up."""
    prompts = max(256, 4 * load.streams) if load.streams > 1 else 24
    results: Results = {side: [] for side in sides}
    for repeat in range(repeats + 1):
        seed = 1000 * load.streams + repeat
        pair = {name: measure(client, side, load, prompts, seed) for name, side in sides.items()}
        if repeat:
            for name, result in pair.items():
                results[name].append(result)
            print(f"{load.streams} streams, repeat {repeat}: {describe(pair)}", flush=True)
    return summary(results, load.streams)


def measure(client: Client, side: Side, load: Load, prompts: int, seed: int) -> dict[str, Any]:
    """Return vLLM's figures of one run, and the CPU time of the front end per token."""
    processes = side.front_end()
    before_s = cpu_s(processes)
    lengths = (load.tokens_in, load.tokens_out)
    result = client.measure(side.url, load.streams, prompts, seed, *lengths)
    used_us = 1e6 * (cpu_s(processes) - before_s)
    return result | {"front_end_us": used_us / result["total_output_tokens"]}


def describe(pair: dict[str, dict[str, Any]]) -> str:
    """Return a line about one pair of runs."""
    return ", ".join(
        f"{side} {r['output_throughput']:.0f} tokens/s, TTFT {r['median_ttft_ms']:.1f} ms, "
        f"front end {r['front_end_us']:.0f} µs/token"
        for side, r in pair.items()
    )


def summary(results: Results, streams: int) -> dict[str, float]:
    """Return medians of each side, and of the ratios and differences to the other sides."""
    figures: dict[str, float] = {}
    ours: list[float]
    bare: list[float]
    for name, (metric, better) in METRICS.items():
        sides = {side: [r[metric] for r in pairs] for side, pairs in results.items()}
        for side, values in sides.items():
            figures[f"{name}_{side}_{streams}"] = round(median(values), 2)
        ours = sides.pop("ours")
        for peer in PEERS:
            if values := sides.pop(peer, []):
                figures |= ratios(f"{name}_over_{peer}_{streams}", ours, values)
        bare = [better(values) for values in zip(*sides.values(), strict=True)]
        figures |= ratios(f"{name}_ratio_{streams}", ours, bare)
    extra = [o - b for o, b in zip(ours, bare, strict=True)]  # of the last metric, which is TTFT
    figures[f"ttft_extra_ms_{streams}"] = round(median(extra), 2)
    return figures | front_end(results, streams)


def ratios(name: str, ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Return the median of the ratios of pairs, and the extremes."""
    each = [o / t for o, t in zip(ours, theirs, strict=True)]
    return {
        name: round(median(each), 3),
        f"{name}_low": round(min(each), 3),
        f"{name}_high": round(max(each), 3),
    }


def front_end(results: Results, streams: int) -> dict[str, float]:
    """Return the CPU time of the front ends per token, in µs, and its ratio to bare vLLM's."""
    sides = {side: [r["front_end_us"] for r in pairs] for side, pairs in results.items()}
    figures = {
        f"front_end_us_{side}_{streams}": round(median(values), 1) for side, values in sides.items()
    }
    bare = next(values for side, values in sides.items() if side.startswith("bare"))
    return figures | ratios(f"front_end_ratio_{streams}", sides["ours"], bare)


if __name__ == "__main__":
    main()
