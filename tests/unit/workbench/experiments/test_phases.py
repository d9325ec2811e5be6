"""The phases of a load, on a service in virtual time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from support.phased_service import PhasedService

from workbench.experiments import autoscaling_phases, read_phases, run_phases
from workbench.experiments.phases import PhaseOutcome
from workbench.metrics.slo import SLO
from workbench.runs.run import Run

SLO_1S = SLO(ttft_ms=1000, target=0.9)


def run_on(path: Path, limit_s: float = 60.0, **service: Any) -> tuple[PhasedService, list[Any]]:
    run = Run.create(path, {}, run_id="r")
    fake = PhasedService(run, **service)
    phases = autoscaling_phases(4.6, SLO_1S, hold_s=15, limit_s=limit_s)
    outcomes = asyncio.run(
        run_phases(phases, fake, run, deployment="m", notify=fake.log.append, sleep=fake.sleep)
    )
    return fake, outcomes


def by_name(outcomes: list[PhaseOutcome]) -> dict[str, PhaseOutcome]:
    return {outcome.name: outcome for outcome in outcomes}


def test_all_phases_reach_what_they_wait_for(tmp_path: Path) -> None:
    fake, outcomes = run_on(tmp_path)
    assert [o.name for o in outcomes] == [
        "steady",
        "rise",
        "scale-up",
        "hold",
        "drop",
        "wake-up",
    ]
    assert {o.ended_by for o in outcomes} == {"reached"}
    assert fake.stopped == "all phases are complete"
    print(fake.log, fake.rates)
    print(outcomes)
    assert read_phases(fake.run) == outcomes
    from workbench.analysis.story import closing_lines

    print("\n".join(closing_lines(fake.run, deployment="m", slo=SLO_1S)))
