"""The closing lines, against runs made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.records import failed, record

from workbench.analysis.story import closing_lines
from workbench.metrics.slo import SLO
from workbench.records import DecisionSample, DeploymentSample, LoadChange, ReplicaSample
from workbench.runs.jsonl import write_document
from workbench.runs.run import Run

SLO_1S = SLO(ttft_ms=1000, target=0.9)
NAMES = ["start", "steady", "rise", "scale-up", "hold", "drop", "wake-up"]
BOUNDS = [0.0, 2.0, 32.0, 36.5, 70.0, 85.0, 105.0, 140.0]


class RunByHand:
    """Steady from 0 s, doubled at 32 s, a second replica requested at 36 s that serves at 57 s."""

    def __init__(self, root: Path, **endings: str) -> None:
        self.run = Run.create(root, {}, run_id="r")
        self._number = 0
        phases = [
            {
                "name": name,
                "waits_for": "x",
                "start_s": start,
                "end_s": end,
                "ended_by": endings.get(name.replace("-", "_"), "reached"),
            }
            for name, start, end in zip(NAMES, BOUNDS, BOUNDS[1:], strict=False)
        ]
        write_document(self.run.path / "phases.json", {"phases": phases})

    def load(self, *rates: tuple[float, float]) -> None:
        plan = {"arrivals": {"kind": "constant", "rate": 2.0}}
        self.run.append_change(LoadChange(0.0, "start", load=plan))
        for time_s, rate in rates:
            self.run.append_change(LoadChange(time_s, "rate", rate))

    def telemetry(
        self, up_s: float = 36.0, runs_s: float = 55.0, serves_s: float = 57.0, zero_s: float = 101
    ) -> None:
        target = 1
        for at in range(140):
            now = 0 if at >= zero_s else 2 if up_s <= at < 93 else 1
            if now != target:
                decision: dict[str, Any] = {
                    "deployment": "m",
                    "from_target": target,
                    "to_target": now,
                }
                self.run.append_telemetry(DecisionSample(time_s=at, **decision))
            target = now
            running = 2 if runs_s <= at < 93 else min(1, now)
            common: dict[str, Any] = {"time_s": at, "deployment": "m"}
            starting = max(0, target - running)
            self.run.append_telemetry(
                DeploymentSample(
                    **common, target=target, running=running, starting=starting, stopping=0
                )
            )
            if up_s < at < 93:
                tokens = 60 if at >= serves_s else 6 if at >= runs_s else None
                self.run.append_telemetry(
                    ReplicaSample(**common, replica="new", node="n", output_tokens=tokens)
                )

    def request(self, due_s: float, ttft_s: float) -> None:
        self._number += 1
        self.run.append_request(
            record(
                due_s,
                due_s + ttft_s,
                due_s + ttft_s + 0.5,
                request_id=f"load-abcdef-{self._number}",
                scheduled_s=due_s,
            )
        )

    def requests(self, start: int, end: int, ttft_s: float) -> None:
        for due_s in range(start, end):
            self.request(due_s, ttft_s)

    def lines(self) -> list[str]:
        return closing_lines(self.run, deployment="m", slo=SLO_1S)


@pytest.fixture
def by_hand(tmp_path: Path) -> RunByHand:
    run = RunByHand(tmp_path)
    run.load((32.1, 4.0), (85.0, 0.0), (105.0, 0.4), (109.0, 0.0))
    run.telemetry()
    run.requests(0, 32, 0.1)
    run.requests(33, 70, 3.1)
    run.requests(70, 85, 0.24)
    run.request(106.0, 24.4)
    return run


def test_the_lines_of_a_run_without_problems(by_hand: RunByHand) -> None:
    assert by_hand.lines() == [
        "The load doubled to 4 requests/s at 0:32; the autoscaler requested a second replica 4 s "
        "later, which served its first token 21 s after that.",
        "TTFT p95 fell from 3.1 s to 240 ms.",
        "100% of the 15 requests from 1:10 to 1:25 met the SLO.",
        "The load ended at 1:25; the last replica had stopped 16 s later.",
        "The next request, at 1:46, got its first token 24 s later.",
    ]


def test_share_is_never_rounded_up_to_all(by_hand: RunByHand) -> None:
    # 1 of 2,016 requests is late: 99.95 %.
    for number in range(2000):
        by_hand.request(70 + number * 0.007, 0.24)
    by_hand.request(84.9, 5.0)
    line = next(line for line in by_hand.lines() if "met the SLO" in line)
    assert line.startswith("99.9% of the 2016 requests")


def test_second_replica_never_came(tmp_path: Path) -> None:
    run = RunByHand(tmp_path, rise="limit", scale_up="limit")
    run.load((32.1, 4.0), (34.0, 6.0))
    run.telemetry(up_s=999, runs_s=999)
    run.requests(33, 70, 3.0)
    run.requests(70, 85, 6.0)
    lines = run.lines()
    assert lines[0] == (
        "The load doubled to 4 requests/s at 0:32 and rose to 6 by 0:34; the autoscaler did not "
        "request a second replica within 4 s."
    )
    assert lines[1] == "Latency did not recover within 34 s: TTFT p95 of the last 10 s was 3 s."
    assert lines[2:4] == [
        "TTFT p95 rose from 3 s to 6 s.",
        "0% of the 15 requests from 1:10 to 1:25 met the SLO.",
    ]


@pytest.mark.parametrize(
    ("runs_s", "end"),
    [(55, "ran 19 s after that, but served no request."), (999, "never ran.")],
)
def test_second_replica_served_nothing(tmp_path: Path, runs_s: float, end: str) -> None:
    run = RunByHand(tmp_path, scale_up="limit")
    run.load((32.1, 4.0))
    run.telemetry(runs_s=runs_s, serves_s=999)
    assert run.lines()[0].endswith(f"4 s later, which {end}")


def test_second_replica_was_requested_before_the_load_doubled(tmp_path: Path) -> None:
    run = RunByHand(tmp_path)
    run.load((32.1, 4.0))
    run.telemetry(up_s=20)
    assert run.lines()[0].endswith(
        "; the autoscaler had requested a second replica at 0:20, which served its first token "
        "37 s after that."
    )


def test_replica_that_stopped_before_the_load_doubled_is_not_the_second(tmp_path: Path) -> None:
    run = RunByHand(tmp_path)
    run.load((32.1, 4.0))
    for time_s, before, now in ((5.0, 1, 2), (20.0, 2, 1)):
        run.run.append_telemetry(
            DecisionSample(time_s=time_s, deployment="m", from_target=before, to_target=now)
        )
    run.telemetry()
    assert "; the autoscaler requested a second replica 4 s later, which" in run.lines()[0]


def test_replica_of_the_wake_up_is_not_the_second(tmp_path: Path) -> None:
    run = RunByHand(tmp_path, rise="limit")
    run.load((32.1, 4.0))
    run.telemetry(up_s=999, runs_s=999)
    decision: dict[str, Any] = {"deployment": "m", "from_target": 1, "to_target": 2}
    run.run.append_telemetry(DecisionSample(time_s=130.0, **decision))
    assert "did not request a second replica" in run.lines()[0]


def test_other_rise_than_a_doubled_load(tmp_path: Path) -> None:
    run = RunByHand(tmp_path)
    run.load((32.1, 3.0))
    run.telemetry()
    assert run.lines()[0].startswith("The load rose to 3 requests/s at 0:32; ")


def test_latency_hardly_changed(tmp_path: Path) -> None:
    run = RunByHand(tmp_path)
    run.load((32.1, 4.0))
    run.telemetry()
    run.requests(33, 70, 0.20)
    run.requests(70, 85, 0.21)
    assert "TTFT p95 hardly changed, from 200 ms to 210 ms." in run.lines()


def test_limits_of_the_first_and_the_drop(tmp_path: Path) -> None:
    run = RunByHand(tmp_path, steady="limit", drop="limit")
    run.load((32.1, 4.0))
    run.telemetry(zero_s=120)  # after the limit
    lines = run.lines()
    assert lines[0] == "Requests did not meet the SLO within 30 s."
    assert "The load ended at 1:25; its last replica had not stopped 20 s later." in lines


def test_failures_are_reported(by_hand: RunByHand) -> None:
    by_hand.run.append_request(failed("error", 107.0, request_id="load-abcdef-9999"))
    assert by_hand.lines()[-1] == "1 of 86 requests failed."


@pytest.mark.parametrize("running", [0, 1])
def test_start_of_a_service_without_replicas(tmp_path: Path, running: int) -> None:
    run = RunByHand(tmp_path)
    common: dict[str, Any] = {"time_s": 0, "deployment": "m", "starting": 0, "stopping": 0}
    run.run.append_telemetry(DeploymentSample(**common, target=running, running=running))
    run.request(1.0, 19.0)
    line = "No replica was running at the start. The first request got its first token 19 s later."
    assert (run.lines()[0] == line) is (running == 0)


def test_wake_up_that_failed_or_was_not_sent(tmp_path: Path) -> None:
    run = RunByHand(tmp_path, wake_up="limit")
    run.load((32.1, 4.0))
    run.telemetry()
    assert run.lines()[-1] == "No request was sent after 1:45."
    run.run.append_request(failed("timeout", 106.0, 116.0, request_id="load-abcdef-1"))
    assert "The next request, at 1:46, failed: X: y." in run.lines()


@pytest.mark.parametrize(
    ("ending", "why"), [("manual", "a person set the rate"), ("stopped", "the load was stopped")]
)
def test_a_person_who_takes_over_is_reported(tmp_path: Path, ending: str, why: str) -> None:
    run = RunByHand(tmp_path, wake_up=ending)
    run.load((32.1, 4.0))
    run.telemetry()
    assert run.lines()[-1] == f"The phases ended at 2:20, in wake-up, because {why}."


def test_without_telemetry_nothing_is_claimed_about_replicas(tmp_path: Path) -> None:
    run = RunByHand(tmp_path, rise="limit", drop="limit")
    run.load((32.1, 4.0))
    lines = run.lines()
    assert lines[0] == (
        "The load doubled to 4 requests/s at 0:32; there is no telemetry of replicas."
    )
    assert "The load ended at 1:25; there is no telemetry of replicas." in lines


def test_run_without_phases_has_no_lines(tmp_path: Path) -> None:
    run = Run.create(tmp_path, {}, run_id="r")
    assert closing_lines(run, deployment="m", slo=SLO_1S) == []
