"""The phases of a load, on a service in virtual time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support.phased_service import PhasedService

from workbench.experiments import Phase, autoscaling_phases, read_phases, run_phases
from workbench.experiments.phases import PhaseOutcome, present_phase
from workbench.metrics.slo import SLO
from workbench.records import ReplicaSample
from workbench.runs.run import Run

SLO_1S = SLO(ttft_ms=1000, target=0.9)
NAMES = ["start", "steady", "rise", "scale-up", "hold", "drop", "wake-up"]


def run_on(
    path: Path, limit_s: float = 60.0, slots: int = 0, **service: Any
) -> tuple[PhasedService, list[PhaseOutcome]]:
    fake = PhasedService(Run.create(path, {}, run_id="r"), **service)
    phases = autoscaling_phases(4.6, SLO_1S, slots=slots, hold_s=15, limit_s=limit_s)
    return fake, run_with(fake, phases)


def run_with(fake: PhasedService, phases: list[Phase]) -> list[PhaseOutcome]:
    return asyncio.run(
        run_phases(
            phases, fake, fake.run, deployment="m", notify=fake.lines.append, sleep=fake.sleep
        )
    )


def replica_samples(run: Run) -> list[ReplicaSample]:
    return [sample for sample in run.samples() if isinstance(sample, ReplicaSample)]


def endings(outcomes: list[PhaseOutcome]) -> dict[str, str]:
    return {outcome.name: outcome.ended_by for outcome in outcomes}


def test_each_phase_ends_when_the_service_shows_it(tmp_path: Path) -> None:
    fake, outcomes = run_on(tmp_path)
    assert endings(outcomes) == dict.fromkeys(NAMES, "reached")
    start_s = {outcome.name: outcome.start_s for outcome in outcomes}
    decided_s = {change: at for at, change in fake.decisions}
    # Each phase begins after the event it waited for, within a sample and a look at it.
    assert 0 <= start_s["scale-up"] - decided_s["1->2"] < 2
    assert start_s["hold"] - decided_s["1->2"] > fake.start_s
    ended = [r for r in fake.run.records() if 0 <= start_s["hold"] - (r.end_s or 0) < 6]
    fast = [r for r in ended if (r.first_token_s or 0) - (r.sent_s or 0) <= 1]
    assert len(fast) >= 0.9 * len(ended) > 0  # latency has recovered
    assert 0 <= start_s["wake-up"] - decided_s["1->0"] < 2
    assert decided_s["0->1"] > start_s["wake-up"]
    assert fake.stopped == "all phases are complete"
    assert fake.in_progress == 0
    assert read_phases(fake.run) == outcomes
    assert present_phase(fake.run.path) is None


def test_rate_doubles_then_drops_and_wakes_the_service_up(tmp_path: Path) -> None:
    fake, outcomes = run_on(tmp_path)
    rates = [rate for _, rate in fake.rates]
    assert rates == [pytest.approx(0.46), 2.3, 4.6, 0.0, pytest.approx(0.46), 0.0, 0.0]
    hold = outcomes[NAMES.index("hold")]
    assert hold.end_s - hold.start_s == pytest.approx(15, abs=1)


def test_load_rises_until_a_second_replica_is_asked_for(tmp_path: Path) -> None:
    # A replica serves 10 requests/s here, more than the doubled load.
    fake = PhasedService(Run.create(tmp_path, {}, run_id="r"), slots=10, wanted_above=9.5)
    outcomes = run_with(fake, autoscaling_phases(4.6, SLO_1S, limit_s=60.0))
    assert endings(outcomes)["rise"] == "reached"
    risen = [rate for _, rate in fake.rates if rate >= 4.6]
    assert risen == [pytest.approx(4.6 * 1.2**step) for step in range(len(risen))]
    assert risen[-1] > 9.5


@pytest.mark.parametrize("service_s", [0.5, 1.0, 2.0])
def test_rates_follow_the_latency_of_the_first_requests(tmp_path: Path, service_s: float) -> None:
    """Four slots serve 8, 4 and 2 requests/s here."""
    fake, outcomes = run_on(tmp_path, slots=4, service_s=service_s)
    assert endings(outcomes) == dict.fromkeys(["start", "first", *NAMES[1:]], "reached")
    doubled = min(4.6, 0.9 * 4 / service_s)
    start_s = {outcome.name: outcome.start_s for outcome in outcomes}
    rates = [rate for at, rate in fake.rates if at >= start_s["first"]]
    assert rates[:3] == pytest.approx([1.15, doubled / 2, doubled])
    assert [at > start_s["rise"] for at, change in fake.decisions if change == "1->2"] == [True]


def test_a_service_without_replicas_is_woken_up_before_the_load(tmp_path: Path) -> None:
    fake, outcomes = run_on(tmp_path, slots=4, target=0)
    assert endings(outcomes) == dict.fromkeys(["start", "first", *NAMES[1:]], "reached")
    start_s = {outcome.name: outcome.start_s for outcome in outcomes}
    assert start_s["first"] > fake.start_s
    assert sum(r.due_s < start_s["first"] for r in fake.run.records()) <= 2
    assert [at > start_s["rise"] for at, change in fake.decisions if change == "1->2"] == [True]


def test_limits_end_phases_that_wait_in_vain(tmp_path: Path) -> None:
    _, outcomes = run_on(tmp_path, limit_s=40, max_replicas=1)
    ended = endings(outcomes)
    assert (ended["rise"], ended["scale-up"]) == ("limit", "limit")
    rise = outcomes[NAMES.index("rise")]
    assert rise.end_s - rise.start_s == pytest.approx(40, abs=1)


@pytest.mark.parametrize(("serves", "ending"), [(True, "reached"), (False, "limit")])
def test_warm_up_of_a_replica_is_no_service(tmp_path: Path, serves: bool, ending: str) -> None:
    fake = PhasedService(Run.create(tmp_path, {}, run_id="r"), second_serves=serves)
    two = Phase("two", "two serve", lambda view: view.serving == 2, limit_s=40, rate=4.6)
    assert endings(run_with(fake, [two])) == {"two": ending}
    assert any(sample.output_tokens == 6 for sample in replica_samples(fake.run)) or serves


@pytest.mark.parametrize("attribute", ["manual_rate", "state"])
def test_phases_leave_a_load_that_someone_else_controls(tmp_path: Path, attribute: str) -> None:
    fake = PhasedService(Run.create(tmp_path, {}, run_id="r"))

    def interfere(view: Any) -> bool:
        if view.phase_s >= 5:
            setattr(fake, attribute, "ended" if attribute == "state" else True)
        return False

    waiting = Phase("wait", "nothing", interfere, limit_s=60, rate=2.0)
    outcomes = run_with(fake, [waiting, Phase("next", "nothing", interfere, limit_s=60, rate=9.0)])
    assert endings(outcomes) == {"wait": "stopped" if attribute == "state" else "manual"}
    assert [rate for _, rate in fake.rates] == [2.0]
    assert fake.stopped is None


def test_rate_does_not_end_a_pause(tmp_path: Path) -> None:
    fake = PhasedService(Run.create(tmp_path, {}, run_id="r"), state="paused")
    run_with(fake, [Phase("wait", "5 s", lambda view: view.phase_s >= 5, limit_s=9, rate=2.0)])
    assert [rate for _, rate in fake.rates] == [0.0]  # at the end


def test_present_phase_is_in_the_file(tmp_path: Path) -> None:
    fake, seen = PhasedService(Run.create(tmp_path, {}, run_id="r")), []

    def look(view: Any) -> bool:
        seen.append(present_phase(fake.run.path))
        return True

    run_with(fake, [Phase("one", "a look", look, limit_s=9)])
    assert seen == [("one", "a look")]
    assert any("one: until a look" in line for line in fake.lines)


def test_run_without_phases_has_none(tmp_path: Path) -> None:
    run = Run.create(tmp_path, {}, run_id="r")
    assert read_phases(run) == []
    assert present_phase(run.path) is None
