"""What is lost, and for how long, when a part dies under load: one line a fault.

Four nodes on this machine (a head without CPUs; each replica of the embedded model on a node of its
own; a spare), six streams all the time, health checks every 2 s with 8 s to answer. The last line
has for each fault `lost_*` (requests that failed), `elsewhere_*` (those that another replica
failed), `answered_s_*` (until the last request that failed had failed) and `recovered_s_*` (until
all replicas ran again).
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile

from _faults import FAULTS, Inject, Outcome, Stage, play, service_spec
from _nodes import nodes
from _report import report

import workbench as wb

WORKERS = {name: {"num_cpus": 1} for name in ("one", "two", "spare")}


def main() -> None:
    """Play each fault, print a line about it, and the result as the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [fault.__name__ for fault in FAULTS]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    options = parser.parse_args()
    chosen = [fault for fault in FAULTS if fault.__name__ in options.only]
    with nodes(WORKERS) as cluster, wb.deploy(service_spec(), address=cluster.address) as endpoint:
        outcomes = [shown(Stage(cluster, endpoint), fault) for fault in chosen]
    goals = {f"elsewhere_{one.fault}": {"max": 0.0} for one in outcomes}
    goals |= {f"left_{one.fault}": {"max": 0.0} for one in outcomes}
    report("faults", figures(outcomes), goals)


def shown(stage: Stage, fault: Inject) -> Outcome:
    """Play one fault and say what it cost."""
    with tempfile.TemporaryDirectory() as folder:
        run = wb.Run.create(folder, {"fault": fault.__name__})
        outcome = asyncio.run(play(stage, fault, run))
        kept = len(list(run.records()))
    print(
        f"{outcome.fault}: {len(outcome.lost)} of {kept} requests lost, the last after "
        f"{outcome.answered_s} s; whole again after {outcome.recovered_s} s; {outcome.causes()}",
        flush=True,
    )
    return outcome


def figures(outcomes: list[Outcome]) -> dict[str, float | int | str | None]:
    """The figures by name."""
    found: dict[str, float | int | str | None] = {}
    for one in outcomes:
        found[f"lost_{one.fault}"] = len(one.lost)
        found[f"finished_{one.fault}"] = one.finished
        found[f"elsewhere_{one.fault}"] = one.elsewhere
        found[f"answered_s_{one.fault}"] = one.answered_s
        found[f"recovered_s_{one.fault}"] = one.recovered_s
        found[f"left_{one.fault}"] = len(one.left)
    return found


if __name__ == "__main__":
    main()
