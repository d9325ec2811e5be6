"""TTFT and TPOT of long prompts: prefill and decode apart, and together on as many replicas.

`colocated` has `--replicas` that do both, `split` has half of them for prefill and the others for
decode. Both get the same open-loop load at each of `--rates` (requests/s for all replicas
together). Figures are medians and 99th percentiles. `_sides.py` says how to measure each side in a
run of its own.

`tpot_ratio_R` and `ttft_ratio_R` are the split over the colocated service at R requests/s.
`transfer_ms_split` and `transfer_mib_split` are the mean time and size of a transfer, where the
connector reports them.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path
from typing import Any

from _report import Goal
from _sides import Figures, add_side_arguments, report_sides
from _vllm import add_model_arguments, model_spec, prepare

import workbench as wb
from workbench.records import ReplicaSample

SIDES = ("colocated", "split")
METRICS = ("median_ttft_ms", "p99_ttft_ms", "median_tpot_ms", "p99_tpot_ms", "output_throughput")


def main() -> None:
    """Measure or compare the sides, and print the result as the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_side_arguments(parser, SIDES)
    add_model_arguments(parser)
    parser.add_argument("--replicas", type=int, default=2, help="replicas, an even number")
    parser.add_argument("--connector", default="example", choices=["nixl", "lmcache", "example"])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.5, 1.0])
    parser.add_argument("--seconds", type=float, default=20, help="seconds at each rate")
    parser.add_argument("--input", type=int, default=512, help="tokens of a prompt")
    parser.add_argument("--output", type=int, default=32, help="tokens of an answer")
    options = parser.parse_args()
    prepare()

    def measure(side: str) -> Figures:
        return {f"{name}_{side}": value for name, value in run(options, side).items()}

    report_sides("disaggregated", options, SIDES, measure, compare)


def run(options: argparse.Namespace, side: str) -> Figures:
    """Deploy the side, send the loads, and return the figures."""
    figures: Figures = {"replicas": options.replicas, "input": options.input}
    with tempfile.TemporaryDirectory() as folder:
        model = model_spec(options, **fields(options, side, Path(folder)))
        with wb.deploy(wb.ServiceSpec(name="pd", port=0, model=model)) as endpoint:
            asyncio.run(_send(endpoint, load(options, options.rates[0], seed=0, seconds=5)))
            for number, rate in enumerate(options.rates, 1):
                result, samples = asyncio.run(
                    measured(endpoint, load(options, rate, seed=number, seconds=options.seconds))
                )
                summary = result.summary()
                print(f"{side}, {rate:g} requests/s: {summary.headline()}", flush=True)
                figures |= {f"{name}_{rate:g}": _rounded(summary, name) for name in METRICS}
                figures |= {f"failed_{rate:g}": summary.failed} | transfers(samples)
    return figures


def fields(options: argparse.Namespace, side: str, folder: Path) -> dict[str, Any]:
    """Return the fields of the model that differ between the sides."""

    def scaling(replicas: int) -> wb.ScalingSpec:
        return wb.ScalingSpec(
            min_replicas=replicas, max_replicas=replicas, max_ongoing_requests=256
        )

    if side == "colocated":
        return {"scaling": scaling(options.replicas)}
    half = wb.Side(scaling=scaling(options.replicas // 2))
    example = options.connector == "example"
    return {
        "disaggregated": wb.Disaggregated(
            prefill=half,
            decode=half,
            connector=options.connector,
            connector_options={"shared_storage_path": str(folder)} if example else {},
        )
    }


def load(options: argparse.Namespace, rate: float, *, seed: int, seconds: float) -> wb.LoadSpec:
    """Return a load that is the same for both sides."""
    return wb.LoadSpec(
        arrivals=wb.Poisson(rate=rate),
        prompts=wb.RandomPrompts(input=options.input, output=options.output),
        duration_s=seconds,
        seed=seed,
    )


async def _send(endpoint: wb.Endpoint, load: wb.LoadSpec) -> Any:
    return await wb.start_load(endpoint, load, progress=None)


async def measured(endpoint: wb.Endpoint, load: wb.LoadSpec) -> tuple[Any, list[Any]]:
    """Send a load; return its result and the samples of the service."""
    samples: list[Any] = []
    with wb.Telemetry(endpoint, wb.client.start_clock(), samples.append):
        return await _send(endpoint, load), samples


def transfers(samples: list[Any]) -> dict[str, float]:
    """Return the mean time and size of a transfer so far; nothing if none is reported."""
    last = {s.replica: s for s in samples if isinstance(s, ReplicaSample) and s.kv_transfers}
    count = sum(sample.kv_transfers or 0 for sample in last.values())
    if not count:
        return {}
    seconds = sum(sample.kv_transfer_s or 0.0 for sample in last.values())
    size = sum(sample.kv_transfer_bytes or 0 for sample in last.values())
    return {
        "transfer_ms": round(seconds / count * 1e3, 3),
        "transfer_mib": round(size / count / 2**20, 3),
    }


def _rounded(summary: Any, name: str) -> float | None:
    value = getattr(summary, name)
    return None if value is None else round(value, 3)


def compare(figures: dict[str, Any]) -> tuple[Figures, dict[str, Goal]]:
    """Return the figures of both sides with their ratios; there are no goals."""
    ratios: Figures = {}
    for name, value in figures.items():
        metric, _, rate = name.removesuffix("_split").rpartition("_")
        if name.endswith("_split") and metric in ("median_ttft_ms", "median_tpot_ms"):
            other = figures.get(f"{metric}_{rate}_colocated")
            short = metric.removeprefix("median_").removesuffix("_ms")
            ratios[f"{short}_ratio_{rate}"] = round(value / other, 3) if value and other else None
    return {**figures, **ratios}, {}


if __name__ == "__main__":
    main()
