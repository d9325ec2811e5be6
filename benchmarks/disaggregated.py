"""TTFT and TPOT of long prompts: disaggregated, and colocated on the same number of replicas.

`colocated` has `--replicas` that do both, `split` has half of them for prefill and the others for
decode. Both get the same open-loop load at each of `--rates` (requests/s for all replicas
together). Figures are medians and 99th percentiles. `_sides.py` says how to measure each side in a
run of its own.

`tpot_ratio_R` and `ttft_ratio_R` are the split over the colocated service at R requests/s.
`transfer_ms_split` and `transfer_mib_split` are the mean time and size of a transfer in all loads,
where the connector reports them.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from typing import Any

from _report import Goal
from _sides import Figures, add_side_arguments, report_sides
from _vllm import add_model_arguments, model_spec, prepare

import workbench as wb
from workbench.experiments.disaggregation import DisaggregationTrial

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
    trial, samples = trial_of(options), []
    with tempfile.TemporaryDirectory() as folder:
        model = trial.models(model_spec(options), folder)[side]
        with wb.deploy(wb.ServiceSpec(name="pd", port=0, model=model)) as endpoint:
            warm_up = trial.load(options.rates[0], seed=0).model_copy(update={"duration_s": 5})
            asyncio.run(_send(endpoint, warm_up))
            for rate, _, load in trial.loads(seed=1):
                result, seen = asyncio.run(measured(endpoint, load))
                samples += seen
                summary = result.summary()
                print(f"{side}, {rate:g} requests/s: {summary.headline()}", flush=True)
                figures |= {f"{name}_{rate:g}": _rounded(summary, name) for name in METRICS}
                figures |= {f"failed_{rate:g}": summary.failed}
    return figures | transfers(samples)


def trial_of(options: argparse.Namespace) -> DisaggregationTrial:
    """Return the loads and replicas that the options describe."""
    return wb.experiments.DisaggregationTrial(
        rates=options.rates,
        input_tokens=options.input,
        output_tokens=options.output,
        duration_s=options.seconds,
        replicas=options.replicas,
        max_model_len=options.max_model_len,
        connector=options.connector,
    )


async def _send(endpoint: wb.Endpoint, load: wb.LoadSpec) -> Any:
    return await wb.start_load(endpoint, load, progress=None)


async def measured(endpoint: wb.Endpoint, load: wb.LoadSpec) -> tuple[Any, list[Any]]:
    """Send a load; return its result and the samples of the service."""
    samples: list[Any] = []
    with wb.Telemetry(endpoint, wb.client.start_clock(), samples.append):
        return await _send(endpoint, load), samples


def transfers(samples: list[Any]) -> Figures:
    """Return the mean time and size of a transfer; nothing if none is reported."""
    reported = wb.experiments.kv_transfers(samples)
    if reported is None:
        return {}
    return {
        "transfer_ms": round(reported.mean_ms, 3),
        "transfer_mib": round(reported.mean_mib, 3),
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
