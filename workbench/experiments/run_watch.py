"""What a run shows at one moment, read from its folder while it grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.records import DeploymentSample, ReplicaSample, RequestRecord, from_line
from workbench.runs.tail import Tail

RECENT_S = 6.0
"""Seconds before now in which a request must have ended to count as recent."""


@dataclass(frozen=True)
class View:
    """What is known of a run and of one deployment at a moment.

    Attributes:
        time_s: The moment, in seconds on the run's clock.
        sample: The last sample of the deployment; None before the first.
        serving: Replicas in the last sample that have served requests.
        recent: Requests that ended in the last `RECENT_S`.
        phase_s: Seconds since the phase began.
        phase_records: Requests that were due in the phase and have ended.
    """

    time_s: float
    sample: DeploymentSample | None = None
    serving: int = 0
    recent: Sequence[RequestRecord] = ()
    phase_s: float = 0.0
    phase_records: Sequence[RequestRecord] = ()

    @property
    def target(self) -> int:
        """Replicas that Serve aims at; 0 before the first sample."""
        return 0 if self.sample is None else self.sample.target or 0

    @property
    def held(self) -> int | None:
        """Replicas in any state, or targeted; None before the first sample."""
        if self.sample is None:
            return None
        states = (self.sample.running, self.sample.starting, self.sample.stopping)
        return max(self.sample.target or 0, sum(count or 0 for count in states))


@dataclass
class RunWatch:
    """Reads what was appended to the run folder `path` since the last call of `view`.

    Attributes:
        path: The run folder.
        deployment: The deployment to watch; None if there is no telemetry of one.
        records: All requests that have ended.
    """

    path: Path
    deployment: str | None
    records: list[RequestRecord] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._requests = Tail(self.path / "requests.jsonl", RequestRecord)
        self._telemetry = Tail(self.path / "telemetry.jsonl", dict[str, Any])
        self._sample: DeploymentSample | None = None
        self._serving: dict[str, float] = {}

    def view(self, time_s: float, phase_start_s: float = 0.0) -> View:
        """Return what is known at `time_s`, in a phase that began at `phase_start_s`."""
        self.records += self._requests.new()
        for line in self._telemetry.new():
            self._take(from_line(line))
        sampled_s = 0.0 if self._sample is None else self._sample.time_s
        return View(
            time_s=time_s,
            sample=self._sample,
            serving=sum(seen_s >= sampled_s for seen_s in self._serving.values()),
            recent=[r for r in self.records if (r.end_s or 0.0) > time_s - RECENT_S],
            phase_s=time_s - phase_start_s,
            phase_records=[r for r in self.records if r.due_s >= phase_start_s],
        )

    def _take(self, sample: object) -> None:
        if getattr(sample, "deployment", None) != self.deployment:
            return
        if isinstance(sample, DeploymentSample):
            self._sample = sample
        elif isinstance(sample, ReplicaSample) and sample.has_served:
            self._serving[sample.replica] = sample.time_s
