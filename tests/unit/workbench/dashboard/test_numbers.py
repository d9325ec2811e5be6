"""The tiles, the event log and the progress, from records made by hand."""

from __future__ import annotations

import pandas as pd
import pytest
from support.records import failed, record

from workbench.dashboard.controls import progress_fields
from workbench.dashboard.events import EventLog
from workbench.dashboard.tally import Tally
from workbench.dashboard.tiles import Tiles
from workbench.figures.cluster_frames import Frames
from workbench.loadgen.handle import LiveLoad
from workbench.metrics.slo import SLO
from workbench.records import DecisionSample, LoadChange
from workbench.workload.point_process import RateSegment
from workbench.workload.rate_curve import RateCurve

BOUND = SLO(ttft_ms=500, target=0.9)


def tally(good: int, slow: int, *, lag_s: float = 0.001, at_s: float = 10.0) -> Tally:
    counted = Tally(BOUND)
    for number in range(good + slow):
        first = 0.1 if number < good else 2.0
        counted.ended(record(lag_s, lag_s + first, scheduled_s=0.0))
    counted.advance(at_s)
    return counted


def tiles(counted: Tally, ttft_p99_ms: float = 100.0, failing: float = 0.0) -> dict[str, str]:
    rows = {"achieved": 4.0, "failed": failing, "shed": 0.0, "ttft_p50_ms": 50.0}
    requests = pd.DataFrame([rows | {"ttft_p99_ms": ttft_p99_ms}])
    empty = pd.DataFrame(columns=["time_s"])
    frames = Frames(requests, [], lambda _: empty, empty, slo=BOUND)
    found = Tiles().update(None, frames, counted)
    return {tile["label"]: f"{tile['value']} {tile['level']}" for tile in found}


@pytest.mark.parametrize(
    ("good", "slow", "shown"), [(9, 1, "90% good"), (17, 3, "85% bad"), (0, 0, "- none")]
)
def test_attainment_is_compared_with_the_target(good: int, slow: int, shown: str) -> None:
    assert tiles(tally(good, slow))["SLO attainment"] == shown


@pytest.mark.parametrize(
    ("ms", "shown"), [(399.0, "399 ms good"), (401.0, "401 ms near"), (16716.22, "16.7 s bad")]
)
def test_ttft_is_compared_with_its_bound(ms: float, shown: str) -> None:
    assert tiles(tally(1, 0), ms)["TTFT p99"] == shown


def test_slow_client_is_shown() -> None:
    assert tiles(tally(5, 0))["Client health"] == "ok good"
    assert tiles(tally(5, 0, lag_s=0.2))["Client health"] == "limited bad"


def test_requests_leave_the_last_minute_and_stay_in_the_run() -> None:
    counted = tally(0, 4)
    for _ in range(4):
        counted.ended(record(0.0, 0.1))
    counted.advance(70.0)
    assert (counted.recent_share, counted.share) == (0.5, 0.5)
    counted.advance(75.0)
    assert (counted.recent_share, counted.share) == (1.0, 0.5)


def test_failures_close_to_each_other_are_one_event() -> None:
    log = EventLog()
    for end in (10.0, 11.0, 12.0, 40.0):
        log.ended(failed("timeout", 0.0, end))
    log.ended(failed("shed", 0.0, 12.0))
    log.ended(record(0.0, 1.0))
    assert [(event["time_s"], event["title"]) for event in log.events()] == [
        (40.0, "1 request timed out"),
        (12.0, "1 request shed"),
        (10.0, "3 requests timed out"),
    ]


def test_decisions_and_changes_are_events() -> None:
    log = EventLog()
    held = {"held_by": "upscale_delay_s", "wanted_s": 5.0, "desired": 4, "total_requests": 12.0}
    decision = DecisionSample(time_s=8.0, deployment="d", from_target=1, to_target=2, **held)  # type: ignore[arg-type]
    log.decided([decision])
    changes = [LoadChange(0.0, "start"), LoadChange(9.0, "rate", 6.0, "capped")]
    log.changed(changes)
    log.changed([*changes, LoadChange(12.0, "late", 3)])
    late, rate, target, _ = log.events()
    assert (late["kind"], late["title"]) == ("slow", "Not sent in time 3")
    assert (rate["title"], rate["detail"]) == ("Rate 6 requests/s", "capped")
    assert target["kind"] == "more"
    assert "Desired by the policy: 4" in target["detail"]
    assert "since 5.0 s" in target["detail"]


def test_progress_is_that_of_the_plan_until_a_rate_is_set() -> None:
    now_s = 31.0
    load = LiveLoad(0, lambda: now_s)
    load.start_s, load._curve = 1.0, RateCurve([RateSegment(90.0, 0.0, 4.0)], 1.0)
    assert progress_fields(load, 90.0) == {"share": 0.333, "progress": "0:30 of 1:30"}
    load.manual_rate = True
    fields = progress_fields(load, 90.0)
    assert fields["share"] is None
    assert "runs until Stop" in fields["progress"]
    assert progress_fields(None, 90.0)["progress"] == "The plan takes 1:30"
