"""The result of a simulation, in the forms of a run: records, samples, decisions, a summary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from serving.spec.model import deployment_name
from serving.spec.service import ServiceSpec
from workbench.cost.prices import Prices
from workbench.cost.replica_seconds import ReplicaSeconds
from workbench.metrics.columns import STATUSES, Columns
from workbench.metrics.health import ClientHealth
from workbench.metrics.slo import SLO
from workbench.metrics.summary import Summary, summarize
from workbench.records import DecisionSample, DeploymentSample, RequestRecord
from workbench.whatif.calibration import Calibration
from workbench.whatif.request_records import (
    beyond_range,
    deployment_samples,
    replica_names,
    request_record,
    status_of,
    token_gaps,
)
from workbench.whatif.workload import Workload

if TYPE_CHECKING:
    import pandas as pd

    from workbench.whatif.state import Fleet, Floats
    from workbench.whatif.tables import Control

SECONDS_PER_DAY = 86_400.0


@dataclass(frozen=True)
class Simulation:
    """What a service did in a simulation. Times are seconds since its start.

    Attributes:
        spec: The service.
        duration_s: Seconds that were simulated: of the load, and until the last request ended.
        marks: What makes the figures doubtful: another model, device or version than that of the
            calibration, a poor fit, a load outside the calibrated range, requests left out.
        warmup_s: Seconds that the summary leaves out.
        preemptions: Requests that lost their place in the KV cache.
        steps: Steps of all engines.
    """

    spec: ServiceSpec
    duration_s: float
    marks: tuple[str, ...]
    warmup_s: float
    preemptions: int
    steps: int
    _requests: Any = field(repr=False)
    _token_times: Floats = field(repr=False)
    _samples: Floats = field(repr=False)
    _decisions: Floats = field(repr=False)
    _replicas: Floats = field(repr=False)

    @classmethod
    def of(
        cls,
        spec: ServiceSpec,
        workload: Workload,
        calibration: Calibration,
        fleet: Fleet,
        control: Control,
    ) -> Self:
        """Return the result of a simulation that has ended."""
        from workbench.whatif.state import PREEMPTIONS, RUNNING, STEPS
        from workbench.whatif.tables import DECISIONS, NOW, SAMPLES, STARTED

        sizes, replicas = control.sizes, control.replicas
        running = np.flatnonzero(fleet.replicas["state"] >= RUNNING)
        replicas[fleet.replicas["number"][running], 4] = fleet.replicas["busy_s"][running]
        samples = control.samples[: sizes[SAMPLES]]
        marks = [
            *calibration.mismatches(spec.model),
            *beyond_range(calibration, fleet.requests),
            *([workload.skipped_text()] if workload.skipped else []),
        ]
        return cls(
            spec=spec,
            duration_s=float(control.clock[NOW]),
            marks=tuple(marks),
            warmup_s=workload.warmup_s,
            preemptions=int(fleet.counts[PREEMPTIONS]),
            steps=int(fleet.counts[STEPS]),
            _requests=fleet.requests,
            _token_times=fleet.token_times,
            _samples=samples,
            _decisions=control.decisions[: sizes[DECISIONS]],
            _replicas=replicas[: sizes[STARTED]],
        )

    @property
    def deployment(self) -> str:
        """The name of the deployment in samples and decisions."""
        return deployment_name(self.spec.model)

    def columns(self) -> Columns:
        """Return the requests as columns, from which metrics are computed."""
        requests = self._requests
        count = len(requests)
        ok = requests["status"] == 1
        gaps, gap_counts = token_gaps(requests, self._token_times, ok)
        none = np.zeros(count, np.int32)
        return Columns(
            [
                requests["due_s"],
                requests["sent_s"],
                requests["first_s"],
                requests["end_s"],
                np.where(ok, requests["prompt"], np.nan),
                np.where(ok, requests["output"], np.nan),
            ],
            status=np.where(ok, STATUSES["ok"], STATUSES["shed"]).astype(np.int32),
            gaps=gaps,
            gap_counts=gap_counts,
            codes={"model": none, "tenant": none},
            names={"model": [self.spec.model.model_id], "tenant": [None]},
        )

    def summary(self, slo: SLO | None = None) -> Summary:
        """Return the figures of the requests, as `wb.summarize` does for a run.

        Args:
            slo: The bounds for goodput and attainment.
        """
        health = ClientHealth.judge(send_lag_p99_ms=0.0, loop_lag_p99_ms=None, cpu_share=None)
        return summarize(self.columns(), slo=slo, warmup_s=self.warmup_s, health=health)

    def headline(self, slo: SLO | None = None) -> str:
        """Return the simulation in one line, with what makes its figures doubtful."""
        doubts = f" (doubtful: {'; '.join(self.marks)})" if self.marks else ""
        return f"simulated: {self.summary(slo).headline()}{doubts}"

    def records(self) -> Iterator[RequestRecord]:
        """Yield the requests in the order in which they were due, as a run does."""
        requests = self._requests
        names = replica_names(self.deployment)
        for number in range(len(requests)):
            yield request_record(
                requests, self._token_times, number, self.spec.model.model_id, names
            )

    def requests_frame(self) -> pd.DataFrame:
        """Return a row per request: due, sent, first token, end, lengths, latencies in ms."""
        import pandas as pd

        from workbench.metrics.registry import PER_REQUEST

        columns, requests = self.columns(), self._requests
        names = replica_names(self.deployment)
        status = np.array([status_of(code) for code in requests["status"]])
        frame = pd.DataFrame(dict(zip(Columns.FIELDS, columns.fields, strict=True)))
        frame.insert(0, "status", status)
        frame.insert(1, "replica", [names(number) for number in requests["replica"]])
        for metric in PER_REQUEST:
            frame[metric.key] = metric.formula(columns) * 1e3
        frame.attrs["marks"] = self.marks
        return frame

    def samples(self) -> Iterator[DeploymentSample | DecisionSample]:
        """Yield a sample of the deployment per second and one per decision, by their times."""
        found: list[DeploymentSample | DecisionSample] = [
            *deployment_samples(self._samples, self.deployment),
            *self.decisions(),
        ]
        found.sort(key=lambda sample: sample.time_s)
        yield from found

    def samples_frame(self, kind: str = "deployment") -> pd.DataFrame:
        """Return a row per sample of a kind, `"deployment"` or `"decision"`, as a run does."""
        import pandas as pd

        from workbench.records import columns, to_line

        known = columns(kind)
        lines = [to_line(sample) for sample in self.samples()]
        rows = [line for line in lines if line.pop("kind") == kind]
        return pd.DataFrame(rows, columns=known)

    def decisions(self) -> list[DecisionSample]:
        """Return the changes of the target, in order."""
        return [
            DecisionSample(
                time_s=float(now),
                deployment=self.deployment,
                from_target=int(before),
                to_target=int(after),
                desired=int(np.ceil(desired - 1e-9)),
                total_requests=float(total),
                wanted_s=float(wanted_s),
            )
            for now, before, after, desired, total, wanted_s in self._decisions
        ]

    def replicas_frame(self) -> pd.DataFrame:
        """Return a row per replica, with the times at which it started and stopped.

        A replica that still exists at the end has NaN as its last times. `busy_s` counts the
        seconds in which it held requests.
        """
        import pandas as pd

        names = ["requested_s", "ready_s", "stopping_s", "stopped_s", "busy_s"]
        frame = pd.DataFrame(self._replicas, columns=names).replace(np.inf, np.nan)
        frame.attrs["marks"] = self.marks
        return frame.rename_axis("replica")

    def replica_seconds(self) -> ReplicaSeconds:
        """Return the seconds for which replicas were held, by state."""
        requested, ready, stopping, stopped, busy = np.minimum(self._replicas, self.duration_s).T
        ready, stopping = np.minimum(ready, stopping), stopping
        served = (stopping - ready).sum()
        return ReplicaSeconds(
            busy=float(busy.sum()),
            idle=float(max(0.0, served - busy.sum())),
            starting=float((ready - requested).sum()),
            stopping=float((stopped - stopping).sum()),
        )

    def cost_per_day(self, prices: Prices) -> float:
        """Return the cost in $ of 24 hours at the simulated load.

        Raises:
            SettingError: A price is missing.
        """
        hours = self.replica_seconds().total / 3600
        scale = SECONDS_PER_DAY / self.duration_s if self.duration_s else 0.0
        return hours * scale * prices.replica_hour(self.spec.model)
