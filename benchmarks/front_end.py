"""CPU time of the front end without an engine: gate per chunk and request, statistics per token."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# The packages `benchmarks` and `support` are not installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))
sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from _engine_statistics import statistics_figures
from _gate_cpu import gate_figures
from _report import report

PARTS = ("gate", "statistics")


def main() -> None:
    """Measure, and print the result as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=128, help="concurrent streams")
    parser.add_argument("--chunks", type=int, default=64, help="chunks, or tokens, of a stream")
    parser.add_argument("--repeats", type=int, default=7, help="pairs of measurements")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="parts to measure")
    options = parser.parse_args()
    figures: dict[str, float] = {}
    if "gate" in options.parts:
        figures |= gate_figures(options.streams, options.chunks, options.repeats)
    if "statistics" in options.parts:
        figures |= statistics_figures(options.streams, options.chunks, options.repeats)
    report("front_end", figures)


if __name__ == "__main__":
    main()
