"""The ports of this project's policies ask for the same replicas as the policies themselves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serving.deploy.autoscaling import EnginePressurePolicy, TTFTPolicy
from serving.engine.stats import FirstTokens
from workbench.whatif import policies, reports
from workbench.whatif.state import ACTIVE, REQUEST, Fleet, empty_fleet

NOW = 10.0
NAMES = {
    policies.WAITING: "waiting_requests",
    policies.BATCH: "engine_running_requests",
    policies.KV_USAGE: "kv_cache_usage",
    policies.TTFT: "ttft_p90_ms",
}


def fleet_of(slots: int, running: int = 0) -> Fleet:
    fleet = empty_fleet(
        np.zeros(8, REQUEST),
        sessions=0,
        token_times=np.zeros(0),
        draws=np.zeros(1),
        slots=slots,
        seats=8,
        groups=0,
        blocks=10,
        firsts=16,
    )
    fleet.counts[ACTIVE] = running
    fleet.replicas["active"] = np.arange(slots)
    return fleet


def reported(values: dict[int, list[float]], running: int) -> Any:
    """Reports of replicas whose figures were constant, so that each mean is the value."""
    series = reports.empty_series(running * policies.FIGURES, 4)
    for figure, by_replica in values.items():
        for slot, value in enumerate(by_replica):
            row = slot * policies.FIGURES + figure
            for at_s in (6.0, 8.0):
                reports.record(series, row, at_s, value, 10.0)
            reports.report(series, row, 9.0, 10.0)
    return series


def context(values: dict[int, list[float]], running: int, in_handle: float) -> Any:
    units = {policies.TTFT: 1e3}
    metrics = {
        NAMES[figure]: {str(slot): value * units.get(figure, 1) for slot, value in enumerate(own)}
        for figure, own in values.items()
    }
    return SimpleNamespace(
        aggregated_metrics=metrics,
        running_replicas=[str(slot) for slot in range(running)],
        current_num_replicas=running,
        total_queued_requests=in_handle,
    )


@pytest.mark.parametrize("seed", range(20))
def test_a_policy_asks_for_the_same_replicas(seed: int) -> None:
    rng = np.random.default_rng(seed)
    running = int(rng.integers(1, 5))
    values = {
        policies.WAITING: rng.choice([0.0, 0.0, 3.0, 9.0], running).tolist(),
        policies.BATCH: rng.choice([0.0, 2.0], running).tolist(),
        policies.KV_USAGE: rng.random(running).tolist(),
        policies.TTFT: rng.choice([0.05, 0.3, 2.0], running).tolist(),
    }
    in_handle = float(rng.choice([0, 4]))
    fleet, series = fleet_of(running, running), reported(values, running)
    serve = context(values, running, in_handle)

    pressure = EnginePressurePolicy(kv_cache_usage=0.7, waiting_requests=4)
    port = policies.Policy(policies.ENGINE_PRESSURE, 8.0, 0.7, 4.0, 0.0, 0.0, 0.0)
    asked = policies.policy_desired(port, fleet, series, NOW, in_handle, running)
    assert asked == pytest.approx(pressure.desired(running, pressure.figures(serve)))

    latency = TTFTPolicy(ttft_ms=400, percentile=90, slack=0.5)
    port = policies.Policy(policies.TTFT_TARGET, 8.0, 0.0, 0.0, 0.4, 0.9, 0.5)
    asked = policies.policy_desired(port, fleet, series, NOW, in_handle, running)
    assert asked == pytest.approx(latency.desired(running, latency.figures(serve)))


def test_a_policy_keeps_the_target_while_nothing_is_reported() -> None:
    port = policies.Policy(policies.ENGINE_PRESSURE, 8.0, 0.7, 4.0, 0.0, 0.0, 0.0)
    series = reports.empty_series(policies.FIGURES, 4)
    assert policies.policy_desired(port, fleet_of(1, 1), series, NOW, 0.0, 3) == 3


@pytest.mark.parametrize("seed", range(10))
def test_recent_times_to_first_token_are_those_of_a_replica(seed: int) -> None:
    rng = np.random.default_rng(seed)
    clock = SimpleNamespace(now=0.0)
    upstream, fleet = FirstTokens(now=lambda: clock.now), fleet_of(1)
    for place, at_s in enumerate(np.sort(rng.uniform(-8, NOW, 12))):
        clock.now, took_s = at_s, float(rng.exponential(2))
        upstream.add(took_s)
        fleet.firsts[0, place].at_s, fleet.firsts[0, place].took_s = at_s, took_s
    # Some requests still wait for their first token.
    for number, sent_s in enumerate(rng.uniform(0, NOW, int(rng.integers(0, 5)))):
        clock.now = sent_s
        upstream.begin()
        fleet.requests[number].sent_s, fleet.requests[number].first_s = sent_s, np.nan
        fleet.seats[0, number].request = number
        fleet.replicas[0].batch = number + 1
    clock.now = NOW
    expected = upstream.percentiles()
    for percentile in (50, 90, 99):
        found = policies.recent_ttft(fleet, 0, NOW, percentile / 100)
        assert found == pytest.approx(expected[percentile])
