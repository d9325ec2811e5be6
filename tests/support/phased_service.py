"""A service, its autoscaler and its load in virtual time, for tests of phases.

It computes nothing of what is tested: one queue, replicas with a number of slots, a fixed time per
request, a delay until a second replica is wanted, and a time to start.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from support.records import record

from workbench.records import DecisionSample, DeploymentSample, LoadChange, ReplicaSample
from workbench.runs.run import Run

STEP_S = 0.1


@dataclass
class PhasedService:
    """Appends records and samples to `run` as its virtual time goes on (`sleep`)."""

    run: Run
    deployment: str = "m"
    slots: int = 4
    service_s: float = 1.0
    wanted_above: float = 3.0
    delay_s: float = 3.0
    start_s: float = 20.0
    idle_s: float = 8.0
    max_replicas: int = 2
    second_serves: bool = True
    state: str = "running"
    manual_rate: bool = False
    in_progress: int = 0
    rate: float = 0.0
    now: float = 0.0
    rates: list[tuple[float, float]] = field(default_factory=list)
    stopped: str | None = None
    target: int = 1
    lines: list[str] = field(default_factory=list)
    decisions: list[tuple[float, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._ready = [0.0] * self.target  # when each replica is ready
        self._due: list[float] = []
        self._ends: list[tuple[float, float, float]] = []
        self._owed = self._above_s = self._idle_since = 0.0
        self._served = {0: 0, 1: 0}
        self._number = 0

    def clock(self) -> float:
        return self.now

    def follow_rate(self, rate: float) -> float:
        self.rate = rate
        self.rates.append((round(self.now, 1), rate))
        self.run.append_change(LoadChange(self.now, "rate", rate))
        return rate

    def stop(self, reason: str) -> None:
        self.stopped, self.state = reason, "ended"

    async def sleep(self, seconds: float) -> None:
        for _ in range(round(seconds / STEP_S)):
            self._step()

    def _step(self) -> None:
        before, self.now = self.now, round(self.now + STEP_S, 3)
        self._owed += self.rate * STEP_S
        while self._owed >= 1 - 1e-9:
            self._owed -= 1
            self._due.append(self.now)
        for end in [end for end in self._ends if end[0] <= self.now]:
            self._finish(*end)
        self._serve()
        self.in_progress = len(self._due) + len(self._ends)
        self._scale()
        if int(self.now) > int(before):
            self._sample()

    def _serve(self) -> None:
        ready = sum(at <= self.now for at in self._ready)
        usable = min(ready, 2 if self.second_serves else 1)
        while self._due and len(self._ends) < self.slots * usable:
            due = self._due.pop(0)
            self._ends.append((self.now + self.service_s, due, self.now + 0.05))
            if usable == 2 and len(self._ends) % 2 == 0:
                self._served[1] += 48
            else:
                self._served[0] += 48

    def _finish(self, end_s: float, due_s: float, first_s: float) -> None:
        self._ends.remove((end_s, due_s, first_s))
        self._number += 1
        name = f"load-abcdef-{self._number}"
        self.run.append_request(
            record(due_s, first_s, end_s, request_id=name, scheduled_s=due_s, output_tokens=48)
        )

    def _scale(self) -> None:
        ongoing = len(self._due) + len(self._ends)
        self._above_s = self._above_s + STEP_S if ongoing > self.wanted_above else 0.0
        if ongoing:
            self._idle_since = self.now
        if self.target == 0 and ongoing:
            self._decide(1)
        elif self.target == 1 and self._above_s >= self.delay_s and self.max_replicas > 1:
            self._decide(2)
        elif self.target and self.now - self._idle_since >= self.idle_s:
            self._decide(self.target - 1)
            self._idle_since = self.now

    def _decide(self, target: int) -> None:
        self.decisions.append((self.now, f"{self.target}->{target}"))
        self.run.append_telemetry(
            DecisionSample(
                time_s=self.now,
                deployment=self.deployment,
                from_target=self.target,
                to_target=target,
            )
        )
        if target > self.target:
            self._ready.append(self.now + self.start_s)
        else:
            self._ready.pop()
        self.target = target
        if not target:
            self._served = {0: 0, 1: 0}

    def _sample(self) -> None:
        ongoing = len(self._due) + len(self._ends)
        running = sum(at <= self.now for at in self._ready)
        common: dict[str, Any] = {"time_s": self.now, "deployment": self.deployment}
        self.run.append_telemetry(
            DeploymentSample(
                **common,
                target=self.target,
                running=running,
                starting=len(self._ready) - running,
                stopping=0,
                desired=min(2, 1 + (ongoing > self.wanted_above)) if self.target else 0,
                total_requests=float(ongoing),
            )
        )
        for index, at in enumerate(self._ready):
            tokens = 6 + self._served[index] if at <= self.now else None
            self.run.append_telemetry(
                ReplicaSample(**common, replica=f"r{index}-{at:g}", node="n", output_tokens=tokens)
            )
