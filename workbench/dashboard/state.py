"""The data that the dashboard draws: the last minute of a running load. It has no widgets."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from functools import cache
from queue import SimpleQueue
from typing import TYPE_CHECKING

import msgspec

from workbench.cost.series import CostSeries
from workbench.dashboard.events import EventLog
from workbench.dashboard.tally import Tally
from workbench.figures.cluster_frames import Frames, with_offered
from workbench.figures.lanes import Lanes
from workbench.metrics.windows import RequestWindows
from workbench.records import (
    SAMPLE_KINDS,
    DecisionSample,
    LoadChange,
    ReplicaSample,
    Sample,
    SampleBase,
    columns,
)

if TYPE_CHECKING:
    import pandas as pd

    from workbench.metrics.slo import SLO
    from workbench.records import RequestRecord

CLOSE_DELAY_S = 1.0
"""Seconds from its end until a second is closed, when all requests that ended in it are known."""


KEEP_S = 60
"""Seconds for which rows and samples are kept. A page gets new ones about once per second."""
MAX_DECISIONS = 500


class LiveState:
    """Takes requests and samples as they come, and returns frames of the last `keep_s` seconds.

    Decisions and what each replica did are kept for the whole run, up to a number.

    `sampled` may be called from another thread, everything else from one thread only.

    Attributes:
        pending: Number of rows and samples that have not been drawn yet; a view sets it to 0.
        tally: The share of requests within the SLO, and the send lag.
        log: The events.
    """

    def __init__(
        self,
        deployments: Collection[str],
        *,
        cost: CostSeries,
        slo: SLO | None = None,
        keep_s: int = KEEP_S,
    ) -> None:
        self.pending = 0
        self.tally, self.log = Tally(slo), EventLog()
        self._deployments, self._keep_s, self._slo = frozenset(deployments), keep_s, slo
        self._requests = RequestWindows(keep=keep_s)
        self._cost, self._lanes = cost, Lanes()
        self._incoming: SimpleQueue[Sample] = SimpleQueue()
        self._samples: dict[str, deque[SampleBase]] = {kind: deque() for kind in SAMPLE_KINDS}
        self._samples["decision"] = deque(maxlen=MAX_DECISIONS)

    def sent(self, times: Sequence[float]) -> None:
        """Requests were sent at `times`, in seconds since the start of the run."""
        for time_s in times:
            self._requests.sent(time_s)

    def ended(self, record: RequestRecord) -> None:
        """A request has ended."""
        self._take_in()  # the cost counts samples and requests in order
        self._requests.ended(record)
        self._cost.ended(record)
        self.tally.ended(record)
        self.log.ended(record)

    def sampled(self, sample: Sample) -> None:
        """A sample was taken. May be called from any thread."""
        self._incoming.put(sample)

    @property
    def held(self) -> int | None:
        """Replicas held or targeted at the last sample, whichever is more; None before it."""
        samples = self._samples["deployment"]
        if not samples:
            return None
        counts = [
            [getattr(sample, name) or 0 for name in ("target", "running", "starting", "stopping")]
            for sample in samples
            if sample.time_s == samples[-1].time_s
        ]
        return sum(max(target, sum(states)) for target, *states in counts)

    def advance(self, now_s: float) -> None:
        """Take in new samples, and drop those older than the window."""
        self._take_in()
        self.pending += self._requests.close(now_s - CLOSE_DELAY_S)
        self.tally.advance(now_s)
        for kind, samples in self._samples.items():
            while kind != "decision" and samples and samples[0].time_s < now_s - self._keep_s:
                samples.popleft()

    def _take_in(self) -> None:
        for _ in range(self._incoming.qsize()):
            sample = self._incoming.get()
            self._cost.observe(sample)
            if getattr(sample, "deployment", None) in (None, *self._deployments):
                self._samples[_kind(sample)].append(sample)
                self._note(sample)
                self.pending += 1

    def _note(self, sample: Sample) -> None:
        if isinstance(sample, ReplicaSample):
            self._lanes.observe(**msgspec.structs.asdict(sample))
        elif isinstance(sample, DecisionSample):
            self.log.decided([sample])

    def frames(self, changes: Sequence[LoadChange]) -> Frames:
        """Return the frames as of the last `advance`; draw them before the next."""
        return Frames(
            requests=with_offered(self._requests.frame(), changes),
            changes=changes,
            samples=cache(self._samples_frame),
            cost=self._cost.frame(),
            lanes=self._lanes,
            slo=self._slo,
        )

    def _samples_frame(self, kind: str) -> pd.DataFrame:
        import pandas as pd

        rows = [msgspec.structs.astuple(sample) for sample in self._samples[kind]]
        return pd.DataFrame(rows, columns=columns(kind))


def _kind(sample: SampleBase) -> str:
    return str(sample.__struct_config__.tag)
