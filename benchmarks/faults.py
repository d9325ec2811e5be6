"""Requests lost and time to recover when a part fails under load.

Four nodes on this machine (a head without CPUs, one node for each replica of the embedded model,
and a spare), six streams all the time, health checks every 2 s with 8 s to answer. For each fault
the last line has `lost_*` (failed requests), `elsewhere_*` (those of replicas that the fault did
not touch), `answered_s_*` (seconds until the last lost request had failed) and `recovered_s_*`
(seconds until all replicas ran again).
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile

from _faults import FAULTS, Inject, Outcome, Target, inject, service_spec
from _nodes import nodes
from _report import report
from _vllm import prepare

import workbench as wb

WORKERS = {name: {"num_cpus": 1} for name in ("one", "two", "spare")}


def main() -> None:
    """Inject each fault, and print a line about it and the result as the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [fault.__name__ for fault in FAULTS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="faults to inject")
    options = parser.parse_args()
    prepare()
    chosen = [fault for fault in FAULTS if fault.__name__ in options.only]
    with nodes(WORKERS) as cluster, wb.deploy(service_spec(), address=cluster.address) as endpoint:
        outcomes = [measure(Target(cluster, endpoint), fault) for fault in chosen]
    goals = {f"elsewhere_{outcome.fault}": {"max": 0.0} for outcome in outcomes}
    goals |= {f"left_{outcome.fault}": {"max": 0.0} for outcome in outcomes}
    report("faults", figures(outcomes), goals)


def measure(target: Target, fault: Inject) -> Outcome:
    """Inject one fault, and print its cost."""
    with tempfile.TemporaryDirectory() as folder:
        run = wb.Run.create(folder, {"fault": fault.__name__})
        outcome = asyncio.run(inject(target, fault, run))
        total = len(list(run.records()))
    print(
        f"{outcome.fault}: {len(outcome.lost)} of {total} requests lost, the last after "
        f"{outcome.answered_s} s; recovered after {outcome.recovered_s} s; {outcome.causes()}",
        flush=True,
    )
    return outcome


def figures(outcomes: list[Outcome]) -> dict[str, float | int | str | None]:
    """Return the figures by name."""
    values: dict[str, float | int | str | None] = {}
    for outcome in outcomes:
        values[f"lost_{outcome.fault}"] = len(outcome.lost)
        values[f"finished_{outcome.fault}"] = outcome.finished
        values[f"elsewhere_{outcome.fault}"] = outcome.elsewhere
        values[f"answered_s_{outcome.fault}"] = outcome.answered_s
        values[f"recovered_s_{outcome.fault}"] = outcome.recovered_s
        values[f"left_{outcome.fault}"] = len(outcome.left)
    return values


if __name__ == "__main__":
    main()
