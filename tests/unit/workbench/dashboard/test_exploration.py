"""Sliders that redraw a simulation."""

from __future__ import annotations

import asyncio

import pytest
from support.whatif import calibration, requests, service

import workbench as wb
from workbench.dashboard.exploration import DEBOUNCE_S, Exploration, explore

LOAD = requests(*[(0.5 * number, 8, 4) for number in range(240)])


@pytest.fixture
def exploration() -> Exploration:
    spec = service(max_replicas=3, target_ongoing_requests=2, upscale_delay_s=0)
    kept = calibration(step_s=0.5, start_s=(5.0,), marks=("a poor fit",))
    return explore(spec, LOAD, kept, slo=wb.SLO(ttft_ms=900), prices=wb.Prices(cpu_hour=2))


def test_a_slider_changes_the_simulation_and_the_figure(exploration: Exploration) -> None:
    before = exploration.simulation
    most = max(exploration.figure.data[1].y)
    exploration.sliders["replicas"].value = (1, 1)
    assert most > 1
    assert max(exploration.figure.data[1].y) == 1
    assert exploration.simulation is not before
    assert exploration.settings() == {
        "target_ongoing_requests": 2,
        "upscale_delay_s": 0,
        "downscale_delay_s": 60,
        "min_replicas": 1,
        "max_replicas": 1,
    }


def test_the_price_and_the_cold_start_have_their_effect(exploration: Exploration) -> None:
    exploration.sliders["replicas"].value = (1, 1)
    assert "$48.00 per day" in exploration.readings.value  # one replica at $2 an hour
    exploration.sliders["price"].value = 3
    assert "$72.00 per day" in exploration.readings.value
    assert "within the SLO" in exploration.readings.value
    assert "doubtful: a poor fit" in exploration.readings.value
    exploration.sliders["replicas"].value = (1, 3)
    started_s = []
    for seconds in (5.0, 20.0):
        exploration.sliders["start_s"].value = seconds
        frame = exploration.simulation.replicas_frame()
        started_s.append(float((frame.ready_s - frame.requested_s)[1]))
    assert started_s == pytest.approx([5, 20], abs=0.11)


def test_quick_moves_are_simulated_once(
    exploration: Exploration, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[float] = []
    original = Exploration.redraw

    def redraw(self: Exploration) -> None:
        drawn.append(self.sliders["target_ongoing_requests"].value)
        original(self)

    monkeypatch.setattr(Exploration, "redraw", redraw)

    async def move() -> None:
        for target in (3.0, 4.0, 5.0):
            exploration.sliders["target_ongoing_requests"].value = target
        while not drawn:
            await asyncio.sleep(DEBOUNCE_S)
        await asyncio.sleep(2 * DEBOUNCE_S)

    asyncio.run(move())
    assert drawn == [5.0]
