"""Replicas start and stop when the settings of the autoscaler say so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.whatif import calibration, requests, service

import workbench as wb
from workbench.whatif.autoscaler import TICK_S
from workbench.whatif.simulator import simulate

STEADY = [(0.5 * number, 8, 1000) for number in range(4)]
"""Four requests that run for a thousand seconds."""

QUICK: dict[str, Any] = {"metrics_interval_s": 0.1, "look_back_period_s": 0.5}


def test_replicas_are_added_when_the_delay_has_just_expired() -> None:
    spec = service(max_replicas=2, target_ongoing_requests=3, upscale_delay_s=10, **QUICK)
    simulation = simulate(spec, requests(*STEADY), calibration(start_s=(7.0,)))
    (up, *_) = simulation.decisions()
    assert (up.from_target, up.to_target) == (1, 2)
    # The fourth request arrives at 1.5 s, and is in a report soon after.
    assert 1.5 < up.wanted_s < 2.5
    assert up.time_s - up.wanted_s == pytest.approx(10, abs=1e-6)
    second = simulation.replicas_frame().iloc[1]
    assert second.requested_s == pytest.approx(up.time_s + TICK_S)
    assert second.ready_s == pytest.approx(second.requested_s + 7, abs=TICK_S + 1e-6)


def test_no_replica_is_added_if_demand_falls_just_before_the_delay_expires() -> None:
    # Two requests at once, one of which ends after 9 s; the delay is 10 s.
    load = requests((0.0, 8, 100), (0.0, 8, 9))
    spec = service(max_replicas=2, target_ongoing_requests=1, upscale_delay_s=10, **QUICK)
    assert simulate(spec, load, calibration()).decisions() == []
    longer = requests((0.0, 8, 100), (0.0, 8, 13))
    assert len(simulate(spec, longer, calibration()).decisions()) > 0


def test_a_replica_is_removed_after_its_requests_have_ended() -> None:
    load = requests(*[(0.0, 8, 30)] * 4)
    spec = service(
        min_replicas=1,
        initial_replicas=2,
        max_replicas=2,
        target_ongoing_requests=4,
        downscale_delay_s=5,
        **QUICK,
    )
    simulation = simulate(spec, load, calibration(stop_s=(3.0,)))
    (down,) = simulation.decisions()
    assert (down.from_target, down.to_target) == (2, 1)
    assert set(simulation.requests_frame().status) == {"ok"}
    newest = simulation.replicas_frame().iloc[1]
    assert newest.stopping_s == pytest.approx(down.time_s + TICK_S)
    last_end_s = simulation.requests_frame().end_s.max()
    assert np.isnan(newest.stopped_s) or newest.stopped_s >= last_end_s + 3 - TICK_S


def test_a_service_at_zero_replicas_wakes_and_goes_back() -> None:
    load = requests((30.0, 8, 5), (300.0, 8, 5))
    spec = service(
        min_replicas=0, max_replicas=2, downscale_delay_s=60, downscale_to_zero_delay_s=20
    )
    simulation = simulate(spec, load, calibration(start_s=(12.0,)))
    changes = [(sample.from_target, sample.to_target) for sample in simulation.decisions()]
    assert changes == [(0, 1), (1, 0), (0, 1)]
    wake, sleep, _ = simulation.decisions()
    # The queue is reported at once, but as it was last recorded: Ray Serve wakes within two
    # intervals of the metrics, not at once.
    assert 30 < wake.time_s <= 30 + 2 * spec.model.scaling.metrics_interval_s + TICK_S
    assert sleep.time_s - sleep.wanted_s == pytest.approx(20, abs=1e-6)
    first = simulation.requests_frame().iloc[0]
    assert first.first_token_s >= wake.time_s + 12


def test_the_direct_path_never_scales_below_one_replica() -> None:
    spec = service(max_replicas=3, initial_replicas=3, downscale_delay_s=1)
    simulation = simulate(spec, requests((200.0, 8, 4)), calibration())
    assert simulation.decisions()[-1].to_target == 1


@pytest.mark.parametrize(
    "policy",
    [
        wb.autoscaling.EnginePressure(waiting_requests=2),
        wb.autoscaling.TTFTTarget(ttft_ms=1500, percentile=90),
    ],
)
def test_our_policies_add_replicas_for_a_queue(policy: object) -> None:
    rng = np.random.default_rng(0)
    load = requests(*[(float(at_s), 8, 20) for at_s in np.sort(rng.uniform(0, 120, 120))])
    spec = service(
        max_replicas=4,
        policy=policy,
        max_ongoing_requests=8,
        max_queued_requests=200,
        target_ongoing_requests=4,
        upscale_delay_s=2,
        downscale_delay_s=20,
    )
    simulation = simulate(spec, load, calibration())
    assert simulation.decisions()[0].to_target > 1
    assert simulation.decisions()[-1].to_target == 1 or simulation.duration_s < 400


def test_replica_seconds_cover_every_state() -> None:
    load = requests(*[(0.0, 8, 50)] * 8)
    spec = service(max_replicas=2, target_ongoing_requests=2, upscale_delay_s=1, **QUICK)
    simulation = simulate(spec, load, calibration(start_s=(20.0,)))
    seconds = simulation.replica_seconds()
    assert seconds.busy == pytest.approx(50, abs=0.01)
    assert seconds.starting == pytest.approx(20, abs=2 * TICK_S)
    frame = simulation.replicas_frame()
    held = simulation.duration_s * 2 - frame.requested_s.sum()
    assert seconds.total == pytest.approx(held)


def test_the_same_seed_gives_the_same_bytes() -> None:
    rng = np.random.default_rng(4)
    rows = [(float(at_s), 30, 20) for at_s in np.sort(rng.uniform(0, 100, 300))]
    spec = service(min_replicas=0, max_replicas=4, routing="power_of_two", upscale_delay_s=1)
    given = calibration(step_s=0.05, start_s=(3.0, 4.0, 5.0))

    def contents(seed: int) -> list[bytes]:
        simulation = simulate(spec, requests(*rows), given, seed=seed)
        frames = (
            simulation.requests_frame(),
            simulation.replicas_frame(),
            simulation.samples_frame(),
            simulation.samples_frame("decision"),
        )
        return [frame.to_csv().encode() for frame in frames]

    assert contents(7) == contents(7)
    assert contents(7) != contents(8)
