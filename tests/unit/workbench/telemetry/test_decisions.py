"""Decisions and reactions in timelines made by hand, second by second."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from support.scaling_timeline import ScalingTimeline, row

from workbench.analysis.autoscaling import flapping
from workbench.analysis.reactions import load_changes, reactions, run_reactions
from workbench.records import DecisionSample, DeploymentSample, ReplicaSample, Sample, from_line
from workbench.runs.run import Run
from workbench.telemetry.decisions import DecisionLog, ScalingLimits, decisions
from workbench.workload.arrivals import ClosedLoop, Poisson, Ramp, Steps
from workbench.workload.spec import LoadSpec

LIMITS = ScalingLimits(
    min_replicas=0,
    max_replicas=3,
    upscale_delay_s=4,
    downscale_delay_s=6,
    downscale_to_zero_delay_s=10,
)


def series(text: str) -> list[DeploymentSample]:
    """One sample per second from pairs of target and desired: `1/1 1/2 2/2`."""
    pairs = [pair.split("/") for pair in text.split()]
    return [row(float(at), int(target), int(desired)) for at, (target, desired) in enumerate(pairs)]


def decision(time_s: float, from_target: int, to_target: int) -> DecisionSample:
    return DecisionSample(
        time_s=time_s, deployment="m", from_target=from_target, to_target=to_target
    )


class TestDecisions:
    def test_steady_target_is_not_a_decision(self) -> None:
        assert decisions(series("1/1 1/2 1/2 1/1"), LIMITS) == []

    def test_upscale_delay_is_named_with_its_start(self) -> None:
        [change] = decisions(series("1/1 1/1 1/2 1/2 1/2 1/2 2/2 2/2"), LIMITS)
        assert (change.time_s, change.from_target, change.to_target) == (6, 1, 2)
        assert (change.wanted_s, change.desired, change.held_by) == (2, 2, "upscale_delay_s")

    def test_interrupted_request_starts_again(self) -> None:
        [change] = decisions(series("1/2 1/2 1/1 1/2 1/2 1/2 1/2 2/2"), LIMITS)
        assert change.wanted_s == 3

    def test_limiting_bound_is_named(self) -> None:
        [change] = decisions(series("1/9 1/9 1/9 1/9 3/9"), LIMITS)
        assert change.held_by == "upscale_delay_s, max_replicas"
        assert change.desired == 9

    def test_downscaling_and_scaling_to_zero_have_their_own_delays(self) -> None:
        down = series("2/1 2/1 2/1 2/1 2/1 2/1 1/1")
        to_zero = series("1/0 1/0 1/0 1/0 1/0 1/0 1/0 1/0 1/0 1/0 0/0")
        held_by = [decisions(samples, LIMITS)[0].held_by for samples in (down, to_zero)]
        assert held_by == ["downscale_delay_s", "downscale_to_zero_delay_s"]
        floor = ScalingLimits(min_replicas=1, max_replicas=3, downscale_delay_s=0)
        [change] = decisions(series("2/0 1/0"), floor)
        assert change.held_by == "min_replicas"

    def test_no_delay_from_zero(self) -> None:
        [change] = decisions(series("0/0 0/0 1/1"), LIMITS)
        assert (change.from_target, change.to_target, change.held_by) == (0, 1, None)
        assert change.wanted_s == 2

    def test_late_samples_do_not_shorten_the_delay(self) -> None:
        [change] = decisions(series("1/1 1/1 1/1 1/1 1/1 1/2 2/2"), LIMITS)
        assert (change.time_s, change.wanted_s, change.held_by) == (6, 2, "upscale_delay_s")

    def test_bound_moved_past_the_target_is_named(self) -> None:
        log = DecisionLog()
        log.observe(row(0, 3, 3), LIMITS)
        [change] = log.observe(row(1, 2, 3), ScalingLimits(max_replicas=2, downscale_delay_s=60))
        assert (change.held_by, change.wanted_s) == ("max_replicas", 1)

    def test_metrics_of_the_policy_are_kept(self) -> None:
        log = DecisionLog()
        log.observe(row(0, 1), LIMITS)
        seen = row(1, 2, total_requests=7.5, queued_requests=3.0)
        [change] = log.observe(seen, LIMITS, {"kv_cache_usage": 0.9})
        assert change.saw == {"total_requests": 7.5, "queued_requests": 3.0, "kv_cache_usage": 0.9}
        assert change.total_requests == 7.5

    @pytest.mark.parametrize(
        ("desired", "used"), [(2, 250.0), (1, 170.0)], ids=["requested before", "requested since"]
    )
    def test_metrics_are_those_of_the_request(self, desired: int, used: float) -> None:
        log = DecisionLog()
        log.observe(row(0, 1, desired), LIMITS, {"ttft_ms": 250.0})
        [change] = log.observe(row(1, 2, 2), LIMITS, {"ttft_ms": 170.0})
        assert change.saw == {"ttft_ms": used}

    def test_missing_metric_has_its_last_value_for_a_while(self) -> None:
        log = DecisionLog()
        log.observe(row(0, 1, total_requests=9.0), LIMITS, {"kv_cache_usage": 0.9})
        log.observe(row(5, 1, total_requests=8.0), LIMITS)
        [change] = log.observe(row(9, 2), LIMITS)
        assert change.saw == {"total_requests": 8.0, "kv_cache_usage": 0.9}
        [change] = log.observe(row(16, 3), LIMITS)
        assert change.saw is None

    def test_deployments_are_separate_and_a_missing_target_is_ignored(self) -> None:
        rows = [
            row(0, 1),
            DeploymentSample(time_s=0, deployment="x", target=5),
            DeploymentSample(time_s=1, deployment="x"),
            row(1, 1),
        ]
        assert decisions(rows, LIMITS) == []

    def test_change_without_autoscaling(self) -> None:
        [change] = decisions(series("1/1 2/2"), None)
        assert (change.to_target, change.held_by) == (2, None)

    def test_limits_come_from_serves_configuration(self) -> None:
        limits = ScalingLimits.from_config(
            {"min_replicas": 0, "max_replicas": 5, "upscale_delay_s": 1.5}
        )
        assert limits == ScalingLimits(min_replicas=0, max_replicas=5, upscale_delay_s=1.5)
        assert ScalingLimits.from_config(None) is None


class TestWorkbenchPolicy:
    """Its metrics arrive a second or more after the target that they changed."""

    led: ClassVar[dict[str, float]] = {"target": 2, "desired": 1.7, "ttft_ms": 250.0}

    def log(self) -> DecisionLog:
        log = DecisionLog()
        assert log.observe(row(0, 1, 1, total_requests=9.0), LIMITS, {}, {"target": 1}) == []
        return log

    def late(self) -> DecisionLog:
        log = self.log()
        assert log.observe(row(1, 2, 1), LIMITS, {}, {"target": 1}) == []
        return log

    def test_change_waits_for_the_metrics(self) -> None:
        calm = {"ttft_ms": 90.0}
        [change] = self.late().observe(row(2, 2, 1), LIMITS, calm, self.led)
        assert (change.time_s, change.desired, change.held_by) == (1, 2, "upscale_delay_s")
        assert change.saw == {"total_requests": 9.0, "ttft_ms": 250.0}

    def test_change_with_metrics_does_not_wait(self) -> None:
        [change] = self.log().observe(row(1, 2, 1), LIMITS, {}, self.led)
        assert (change.time_s, change.desired) == (1, 2)

    def test_wait_is_limited(self) -> None:
        log = self.late()
        waited = [log.observe(row(1 + at, 2, 1), LIMITS, {}, {}) for at in range(1, 8)]
        [change] = [change for changes in waited for change in changes]
        assert (change.time_s, change.desired, change.saw) == (1, 1, {"total_requests": 9.0})
        assert [len(changes) for changes in waited] == [0, 0, 0, 0, 0, 1, 0]

    def test_next_change_ends_the_wait(self) -> None:
        log = self.late()
        [first] = log.observe(row(2, 3, 3), LIMITS, {}, {"target": 1})
        [second] = log.observe(
            row(3, 3, 3), LIMITS, {}, {"target": 3, "desired": 3, "ttft_ms": 700}
        )
        assert [(change.from_target, change.to_target) for change in (first, second)] == [
            (1, 2),
            (2, 3),
        ]
        assert second.saw is not None
        assert second.saw["ttft_ms"] == 700

    def test_change_that_no_policy_requested_does_not_wait(self) -> None:
        asleep = DecisionLog()
        asleep.observe(row(0, 0, 0), LIMITS, {}, {"target": 0})
        [woke] = asleep.observe(row(1, 1, 1), LIMITS, {}, {"target": 0})
        [moved] = self.log().observe(row(1, 2, 1), ScalingLimits(2, 4), {}, {"target": 1})
        assert (woke.held_by, moved.held_by) == (None, "min_replicas")

    def test_waiting_change_is_returned_at_the_end(self) -> None:
        log = self.late()
        [change] = log.close()
        assert (change.to_target, change.saw) == (2, {"total_requests": 9.0})
        assert log.close() == []


class TestFlapping:
    def changes(self, *targets_at: tuple[float, int]) -> list[DecisionSample]:
        pairs = itertools.pairwise(targets_at)
        return [decision(at, before, to) for (_, before), (at, to) in pairs]

    def test_up_down_up_within_the_window_is_flapping(self) -> None:
        [flaps] = flapping(self.changes((0, 1), (10, 2), (30, 1), (45, 2), (70, 1)))
        assert (flaps.start_s, flaps.end_s, flaps.targets) == (10, 70, (1, 2, 1, 2, 1))
        assert "m flaps: 1 → 2 → 1 → 2 → 1 within 60 s" in str(flaps)
        assert "downscale_delay_s" in str(flaps)

    @pytest.mark.parametrize(
        "targets_at",
        [
            [(0, 1), (10, 2), (20, 3), (30, 2), (40, 1)],
            [(0, 1), (10, 2), (30, 1)],
            [(0, 1), (10, 2), (80, 1), (150, 2)],
        ],
        ids=["a load that came and went", "once", "slowly"],
    )
    def test_no_flapping(self, targets_at: Sequence[tuple[float, int]]) -> None:
        assert flapping(self.changes(*targets_at)) == []

    def test_deployments_that_alternate_do_not_flap(self) -> None:
        other = DecisionSample(time_s=20, deployment="x", from_target=2, to_target=1)
        assert flapping([decision(10, 1, 2), other, decision(30, 2, 3)]) == []


class TestReactions(ScalingTimeline):
    def test_steps_up_and_down(self) -> None:
        up, down = self.reactions(replicas=self.replicas())
        assert up.marks() == [
            ("load changed", 10),
            ("metrics changed", 11),
            ("change requested", 12),
            ("delay passed", 16),
            ("actor scheduled", 18),
            ("engine loaded", 25),
            ("first token served", 27),
        ]
        assert down.marks() == [
            ("load changed", 30),
            ("metrics changed", 31),
            ("change requested", 31),
            ("delay passed", 35),
            ("replicas stopped", 38),
        ]
        assert up.cold_start_s is None

    def test_a_stop_that_the_next_decision_overtakes_has_no_end(self) -> None:
        # A request comes before the last replica is seen to have stopped.
        targets = [1] * 5 + [0] * 2 + [1] * 10 + [0] * 5
        rows = [
            row(float(at), target, target, running=int(at < 20), stopping=0)
            for at, target in enumerate(targets)
        ]
        down, up, again = reactions(rows, decisions(rows, LIMITS))
        assert (down.to_target, up.to_target, again.to_target) == (0, 1, 0)
        assert down.stopped_s is None
        assert again.stopped_s == 20

    def test_steps_add_up_to_the_whole(self) -> None:
        [up, _] = self.reactions(replicas=self.replicas())
        steps = up.steps()
        assert [name for name, _, _ in steps] == [name for name, _ in up.marks()][1:]
        assert sum(end - start for _, start, end in steps) == 27 - 10

    def test_without_replica_samples_the_counts_are_used(self) -> None:
        [up, _] = self.reactions()
        assert (up.scheduled_s, up.loaded_s, up.first_token_s) == (17, 25, None)

    def test_cold_start_ends_with_the_first_token(self) -> None:
        rows = [
            row(at, int(at >= 3), int(at >= 3), running=int(at >= 20), total_requests=at >= 2)
            for at in range(30)
        ]
        [reaction] = reactions(
            rows, decisions(rows, LIMITS), load_changes_s=[1.5], first_tokens_s=[19.25, 22.0]
        )
        assert reaction.cold_start_s == 19.25 - 1.5
        assert reaction.loaded_s == 19.25, "it answers before a sample shows that it runs"

    def test_decision_without_a_known_load_change(self) -> None:
        rows = self.rows()
        up, _ = reactions(rows, decisions(rows, self.limits))
        assert (up.load_changed_s, up.metrics_changed_s) == (None, None)
        assert up.marks()[0] == ("change requested", 12)


@pytest.mark.parametrize(
    ("arrivals", "more", "changes"),
    [
        (Steps(steps=[(1, 10), (4, 20), (4, 5), (0, 15)]), {}, [2, 12, 37]),
        (Steps(steps=[(1, 10), (4, 20)]), {"duration_s": 15}, [2, 12, 17]),
        (Poisson(rate=3), {"duration_s": 10}, [2, 12]),
        (Poisson(rate=3), {"count": 10}, [2]),
        (Ramp(from_rate=0, to_rate=5, duration_s=10), {"duration_s": 10}, [2, 12]),
        (ClosedLoop(max_concurrency=4), {"count": 10}, [2]),
    ],
    ids=["steps", "cut", "one rate", "by count", "ramp", "closed"],
)
def test_load_changes_of_a_schedule(arrivals: Any, more: Any, changes: list[float]) -> None:
    assert load_changes(LoadSpec(arrivals=arrivals, **more), start_s=2) == changes


def test_reactions_of_a_run(tmp_path: Path) -> None:
    run = Run.create(tmp_path, {}, run_id="r")
    timeline = ScalingTimeline()
    rows = timeline.rows()
    samples: list[Sample] = [*rows, *timeline.replicas()]
    for sample in [*samples, *decisions(rows, timeline.limits)]:
        run.append_telemetry(sample)
    expected = timeline.reactions(replicas=timeline.replicas())
    assert run_reactions(Run.open(run.path), [10.0, 30.0]) == expected


class TestRecordedRun:
    """Telemetry of a real deployment: 0 to 2 replicas and back, every two seconds, load at 0 s.

    Serve's own policy with 4 ongoing requests and delays of 2 s up, 4 s down and 4 s to zero. The
    machine was busy, so replicas were placed late and the second one never started.
    """

    LIMITS = ScalingLimits(
        min_replicas=0,
        max_replicas=2,
        upscale_delay_s=2,
        downscale_delay_s=4,
        downscale_to_zero_delay_s=4,
    )

    def samples(self) -> tuple[list[DeploymentSample], list[ReplicaSample]]:
        lines = Path(__file__).with_name("recorded_scaling.jsonl").read_text().splitlines()
        samples = [from_line(json.loads(line)) for line in lines]
        return (
            [sample for sample in samples if isinstance(sample, DeploymentSample)],
            [sample for sample in samples if isinstance(sample, ReplicaSample)],
        )

    def test_decisions(self) -> None:
        changes = decisions(self.samples()[0], self.LIMITS)
        assert [(change.from_target, change.to_target, change.held_by) for change in changes] == [
            (0, 1, None),
            (1, 2, "upscale_delay_s, max_replicas"),
            (2, 1, "downscale_delay_s"),
            (1, 0, "downscale_to_zero_delay_s"),
        ]
        assert flapping(changes) == []

    def test_reactions(self) -> None:
        rows, replicas = self.samples()
        changes = decisions(rows, self.LIMITS)
        wake, up, *down = reactions(rows, changes, load_changes_s=[0.0], replicas=replicas)
        assert wake.cold_start_s is not None
        assert 50 < wake.cold_start_s < 56
        assert [name for name, _ in up.marks()][-1] == "actor scheduled"
        assert up.first_token_s is None
        assert [reaction.marks()[-1][0] for reaction in down] == ["replicas stopped"] * 2
        for reaction in (wake, up, *down):
            times = [at for _, at in reaction.marks()]
            assert times == sorted(times)
