"""Cost of composition and guardrail, and of the gate with its keys and quotas."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# The packages `tools` and `benchmarks` are not installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))

import _composition
from _gate_cost import gate_cost
from _report import Goal, report
from _vllm import prepare

GOALS: dict[str, Goal] = _composition.GOALS | {
    "auth_ttft_ms": {"max": 1},
    "gate_ratio_16": {"min": 0.99},
}
PARTS = ("composition", "gate")


def main() -> None:
    """Measure, and print the result as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--pairs", type=int, default=300, help="pairs of requests for the gate's cost"
    )
    parser.add_argument(
        "--loaded-pairs", type=int, default=20, help="pairs of loads for the gate's cost"
    )
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="parts to measure")
    _composition.add_arguments(parser)
    options = parser.parse_args()
    prepare()
    figures: dict[str, float] = {}
    if "composition" in options.parts:
        figures |= _composition.run(options)
    if "gate" in options.parts:
        figures |= gate_cost(options.pairs, options.loaded_pairs)
    report("pipeline", figures, {name: GOALS[name] for name in GOALS if name in figures})


if __name__ == "__main__":
    main()
