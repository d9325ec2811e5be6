"""Decisions and reactions over timelines made by hand, second by second."""

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
from workbench.records import DecisionSample, DeploymentSample, ReplicaSample, from_line
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
    """A sample a second from pairs of target and desired: `1/1 1/2 2/2`."""
    pairs = [pair.split("/") for pair in text.split()]
    return [row(float(at), int(one), int(two)) for at, (one, two) in enumerate(pairs)]


def decision(time_s: float, from_target: int, to_target: int) -> DecisionSample:
    return DecisionSample(
        time_s=time_s, deployment="m", from_target=from_target, to_target=to_target
    )


class TestDecisions:
    def test_a_steady_target_is_no_decision(self) -> None:
        assert decisions(series("1/1 1/2 1/2 1/1"), LIMITS) == []

    def test_the_upscale_delay_is_named_with_when_it_began(self) -> None:
        [made] = decisions(series("1/1 1/1 1/2 1/2 1/2 1/2 2/2 2/2"), LIMITS)
        assert (made.time_s, made.from_target, made.to_target) == (6, 1, 2)
        assert (made.wanted_s, made.desired, made.held_by) == (2, 2, "upscale_delay_s")

    def test_a_want_that_was_given_up_begins_anew(self) -> None:
        [made] = decisions(series("1/2 1/2 1/1 1/2 1/2 1/2 1/2 2/2"), LIMITS)
        assert made.wanted_s == 3

    def test_the_bound_that_cut_it_is_named_too(self) -> None:
        [made] = decisions(series("1/9 1/9 1/9 1/9 3/9"), LIMITS)
        assert made.held_by == "upscale_delay_s, max_replicas"
        assert made.desired == 9

    def test_down_and_to_zero_have_delays_of_their_own(self) -> None:
        down = series("2/1 2/1 2/1 2/1 2/1 2/1 1/1")
        to_zero = series("1/0 1/0 1/0 1/0 1/0 1/0 1/0 1/0 1/0 1/0 0/0")
        held = [decisions(one, LIMITS)[0].held_by for one in (down, to_zero)]
        assert held == ["downscale_delay_s", "downscale_to_zero_delay_s"]
        floor = ScalingLimits(min_replicas=1, max_replicas=3, downscale_delay_s=0)
        [made] = decisions(series("2/0 1/0"), floor)
        assert made.held_by == "min_replicas"

    def test_from_zero_nothing_holds(self) -> None:
        [made] = decisions(series("0/0 0/0 1/1"), LIMITS)
        assert (made.from_target, made.to_target, made.held_by) == (0, 1, None)
        assert made.wanted_s == 2

    def test_late_samples_do_not_shorten_the_delay(self) -> None:
        [made] = decisions(series("1/1 1/1 1/1 1/1 1/1 1/2 2/2"), LIMITS)
        assert (made.time_s, made.wanted_s, made.held_by) == (6, 2, "upscale_delay_s")

    def test_a_bound_that_is_moved_over_the_target_is_what_held_it(self) -> None:
        log = DecisionLog()
        log.observe(row(0, 3, 3), LIMITS)
        [made] = log.observe(row(1, 2, 3), ScalingLimits(max_replicas=2, downscale_delay_s=60))
        assert (made.held_by, made.wanted_s) == ("max_replicas", 1)

    def test_what_the_policy_saw_is_kept(self) -> None:
        log = DecisionLog()
        log.observe(row(0, 1), LIMITS)
        seen = row(1, 2, total_requests=7.5, queued_requests=3.0)
        [made] = log.observe(seen, LIMITS, {"kv_cache_usage": 0.9})
        assert made.saw == {"total_requests": 7.5, "queued_requests": 3.0, "kv_cache_usage": 0.9}
        assert made.total_requests == 7.5

    @pytest.mark.parametrize(
        ("desired", "went_by"), [(2, 250.0), (1, 170.0)], ids=["asked before", "asked since"]
    )
    def test_figures_are_those_of_the_ask_and_not_of_what_followed(
        self, desired: int, went_by: float
    ) -> None:
        log = DecisionLog()
        log.observe(row(0, 1, desired), LIMITS, {"ttft_ms": 250.0})
        [made] = log.observe(row(1, 2, 2), LIMITS, {"ttft_ms": 170.0})
        assert made.saw == {"ttft_ms": went_by}

    def test_a_figure_missing_from_one_sample_is_the_last_one_told(self) -> None:
        log = DecisionLog()
        log.observe(row(0, 1, total_requests=9.0), LIMITS, {"kv_cache_usage": 0.9})
        log.observe(row(5, 1, total_requests=8.0), LIMITS)
        [made] = log.observe(row(9, 2), LIMITS)
        assert made.saw == {"total_requests": 8.0, "kv_cache_usage": 0.9}
        [made] = log.observe(row(16, 3), LIMITS)
        assert made.saw is None

    def test_deployments_do_not_mix_and_a_missing_target_is_passed_over(self) -> None:
        rows = [
            row(0, 1),
            DeploymentSample(time_s=0, deployment="x", target=5),
            DeploymentSample(time_s=1, deployment="x"),
            row(1, 1),
        ]
        assert decisions(rows, LIMITS) == []

    def test_without_autoscaling_a_change_is_still_told(self) -> None:
        [made] = decisions(series("1/1 2/2"), None)
        assert (made.to_target, made.held_by) == (2, None)

    def test_limits_are_read_from_serves_own_configuration(self) -> None:
        found = ScalingLimits.from_config(
            {"min_replicas": 0, "max_replicas": 5, "upscale_delay_s": 1.5}
        )
        assert found == ScalingLimits(min_replicas=0, max_replicas=5, upscale_delay_s=1.5)
        assert ScalingLimits.from_config(None) is None


class TestAPolicyThatTells:
    """Its figures come through metrics, a second or more after the target that they moved."""

    led: ClassVar[dict[str, float]] = {"target": 2, "desired": 1.7, "ttft_ms": 250.0}

    def log(self) -> DecisionLog:
        log = DecisionLog()
        assert log.observe(row(0, 1, 1, total_requests=9.0), LIMITS, {}, {"target": 1}) == []
        return log

    def late(self) -> DecisionLog:
        log = self.log()
        assert log.observe(row(1, 2, 1), LIMITS, {}, {"target": 1}) == []
        return log

    def test_a_change_waits_for_what_led_to_it(self) -> None:
        calm = {"ttft_ms": 90.0}
        [made] = self.late().observe(row(2, 2, 1), LIMITS, calm, self.led)
        assert (made.time_s, made.desired, made.held_by) == (1, 2, "upscale_delay_s")
        assert made.saw == {"total_requests": 9.0, "ttft_ms": 250.0}

    def test_what_is_told_at_once_does_not_wait(self) -> None:
        [made] = self.log().observe(row(1, 2, 1), LIMITS, {}, self.led)
        assert (made.time_s, made.desired) == (1, 2)

    def test_it_waits_no_longer_than_its_patience(self) -> None:
        log = self.late()
        waited = [log.observe(row(1 + at, 2, 1), LIMITS, {}, {}) for at in range(1, 8)]
        [made] = [one for found in waited for one in found]
        assert (made.time_s, made.desired, made.saw) == (1, 1, {"total_requests": 9.0})
        assert [len(found) for found in waited] == [0, 0, 0, 0, 0, 1, 0]

    def test_the_next_change_ends_the_wait_in_order(self) -> None:
        log = self.late()
        [first] = log.observe(row(2, 3, 3), LIMITS, {}, {"target": 1})
        [second] = log.observe(
            row(3, 3, 3), LIMITS, {}, {"target": 3, "desired": 3, "ttft_ms": 700}
        )
        assert [(one.from_target, one.to_target) for one in (first, second)] == [(1, 2), (2, 3)]
        assert second.saw is not None
        assert second.saw["ttft_ms"] == 700

    def test_what_no_policy_asked_for_does_not_wait(self) -> None:
        asleep = DecisionLog()
        asleep.observe(row(0, 0, 0), LIMITS, {}, {"target": 0})
        [woke] = asleep.observe(row(1, 1, 1), LIMITS, {}, {"target": 0})
        [moved] = self.log().observe(row(1, 2, 1), ScalingLimits(2, 4), {}, {"target": 1})
        assert (woke.held_by, moved.held_by) == (None, "min_replicas")

    def test_what_waits_at_the_end_is_told_with_what_is_known(self) -> None:
        log = self.late()
        [made] = log.close()
        assert (made.to_target, made.saw) == (2, {"total_requests": 9.0})
        assert log.close() == []


class TestFlapping:
    def made(self, *targets_at: tuple[float, int]) -> list[DecisionSample]:
        pairs = itertools.pairwise(targets_at)
        return [decision(at, before, to) for (_, before), (at, to) in pairs]

    def test_up_down_up_within_the_window_is_flapping_and_named(self) -> None:
        [found] = flapping(self.made((0, 1), (10, 2), (30, 1), (45, 2), (70, 1)))
        assert (found.start_s, found.end_s, found.targets) == (10, 70, (1, 2, 1, 2, 1))
        assert "m flaps: 1 → 2 → 1 → 2 → 1 within 60 s" in str(found)
        assert "downscale_delay_s" in str(found)

    @pytest.mark.parametrize(
        "targets_at",
        [
            [(0, 1), (10, 2), (20, 3), (30, 2), (40, 1)],
            [(0, 1), (10, 2), (30, 1)],
            [(0, 1), (10, 2), (80, 1), (150, 2)],
        ],
        ids=["a load that came and went", "once", "slowly"],
    )
    def test_what_is_none(self, targets_at: Sequence[tuple[float, int]]) -> None:
        assert flapping(self.made(*targets_at)) == []

    def test_two_deployments_that_alternate_do_not_flap(self) -> None:
        other = DecisionSample(time_s=20, deployment="x", from_target=2, to_target=1)
        assert flapping([decision(10, 1, 2), other, decision(30, 2, 3)]) == []


class TestReactions(ScalingTimeline):
    def test_every_step_up_and_down(self) -> None:
        up, down = self.found(replicas=self.replicas())
        assert up.marks() == [
            ("load changed", 10),
            ("metric saw it", 11),
            ("policy wanted it", 12),
            ("delay passed", 16),
            ("actor scheduled", 18),
            ("engine loaded", 25),
            ("first token served", 27),
        ]
        assert down.marks() == [
            ("load changed", 30),
            ("metric saw it", 31),
            ("policy wanted it", 31),
            ("delay passed", 35),
            ("replicas stopped", 38),
        ]
        assert up.cold_start_s is None

    def test_the_steps_add_up_to_the_whole(self) -> None:
        [up, _] = self.found(replicas=self.replicas())
        steps = up.steps()
        assert [name for name, _, _ in steps] == [name for name, _ in up.marks()][1:]
        assert sum(end - start for _, start, end in steps) == 27 - 10

    def test_without_replica_samples_the_counts_tell_what_they_can(self) -> None:
        [up, _] = self.found()
        assert (up.scheduled_s, up.loaded_s, up.first_token_s) == (17, 25, None)

    def test_a_cold_start_ends_with_the_first_token_of_a_request(self) -> None:
        rows = [
            row(at, int(at >= 3), int(at >= 3), running=int(at >= 20), total_requests=at >= 2)
            for at in range(30)
        ]
        [one] = reactions(
            rows, decisions(rows, LIMITS), load_changes_s=[1.5], first_tokens_s=[19.25, 22.0]
        )
        assert one.cold_start_s == 19.25 - 1.5
        assert one.loaded_s == 19.25, "it answers before a sample shows it running"

    def test_a_decision_without_a_known_load_has_no_beginning(self) -> None:
        rows = self.rows()
        up, _ = reactions(rows, decisions(rows, self.limits))
        assert (up.load_changed_s, up.metric_saw_s) == (None, None)
        assert up.marks()[0] == ("policy wanted it", 12)


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


def test_a_run_gives_its_reactions(tmp_path: Path) -> None:
    run = Run.create(tmp_path, {}, run_id="r")
    timeline = ScalingTimeline()
    rows = timeline.rows()
    for sample in [*rows, *timeline.replicas(), *decisions(rows, timeline.limits)]:
        run.append_telemetry(sample)
    wanted = timeline.found(replicas=timeline.replicas())
    assert run_reactions(Run.open(run.path), [10.0, 30.0]) == wanted


class TestARealRun:
    """Telemetry of a real deployment: 0 to 2 replicas and back, every two seconds, load at 0 s.

    Serve's own policy with 4 ongoing requests, delays of 2 s up, 4 s down and 4 s to zero; the
    machine was busy, so replicas were placed late and the second one never came up.
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
        found = [from_line(json.loads(one)) for one in lines]
        return (
            [one for one in found if isinstance(one, DeploymentSample)],
            [one for one in found if isinstance(one, ReplicaSample)],
        )

    def test_its_decisions_and_what_held_them(self) -> None:
        made = decisions(self.samples()[0], self.LIMITS)
        assert [(one.from_target, one.to_target, one.held_by) for one in made] == [
            (0, 1, None),
            (1, 2, "upscale_delay_s, max_replicas"),
            (2, 1, "downscale_delay_s"),
            (1, 0, "downscale_to_zero_delay_s"),
        ]
        assert flapping(made) == []

    def test_its_reactions(self) -> None:
        rows, replicas = self.samples()
        made = decisions(rows, self.LIMITS)
        wake, up, *down = reactions(rows, made, load_changes_s=[0.0], replicas=replicas)
        assert wake.cold_start_s is not None
        assert 50 < wake.cold_start_s < 56
        assert [name for name, _ in up.marks()][-1] == "actor scheduled"
        assert up.first_token_s is None
        assert [one.marks()[-1][0] for one in down] == ["replicas stopped"] * 2
        for one in (wake, up, *down):
            times = [at for _, at in one.marks()]
            assert times == sorted(times)
