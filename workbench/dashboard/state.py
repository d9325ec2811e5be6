"""The last minutes of a run while it goes: what the dashboard draws. No widget, and bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING

import msgspec

from workbench.cost.series import CostSeries
from workbench.figures.cluster_frames import Frames, engine_rows, with_offered
from workbench.metrics.windows import RequestWindows
from workbench.records import (
    DecisionSample,
    DeploymentSample,
    LoadChange,
    ReplicaSample,
    Sample,
    SampleBase,
    columns,
)

if TYPE_CHECKING:
    import pandas as pd

    from workbench.records import RequestRecord

SETTLE_S = 1.0
"""A second is closed so long after its end: what ended in it has been told by then."""
_DRAWN = (DeploymentSample, ReplicaSample, DecisionSample)


class LiveState:
    """Takes what happens as it happens, and gives the frames of the last `window_s` seconds.

    Samples may come from another thread; everything else comes from one.
    """

    def __init__(
        self,
        deployments: Collection[str],
        *,
        window_s: int,
        cost: CostSeries,
    ) -> None:
        self._deployments, self._window_s = frozenset(deployments), window_s
        self._requests = RequestWindows(keep=window_s)
        self._cost = cost
        self._incoming: SimpleQueue[Sample] = SimpleQueue()
        self._samples: dict[type, deque[SampleBase]] = {kind: deque() for kind in _DRAWN}
        self.news = 0
        """Grows with every row or sample that a view has not drawn yet."""

    def sent(self, times: Sequence[float]) -> None:
        """Requests were sent at these times."""
        for at in times:
            self._requests.sent(at)

    def ended(self, record: RequestRecord) -> None:
        """A request has ended."""
        self._take_in()  # the cost counts in order
        self._requests.ended(record)
        self._cost.ended(record)

    def sampled(self, sample: Sample) -> None:
        """A sample was taken. From any thread."""
        self._incoming.put(sample)

    @property
    def held(self) -> int | None:
        """Replicas held or wanted at the last sample, whichever is more; None before the first."""
        own = self._samples[DeploymentSample]
        last = [one for one in own if one.time_s == own[-1].time_s]
        counts = [
            [getattr(one, name) or 0 for name in ("target", "running", "starting", "stopping")]
            for one in last
        ]
        return sum(max(target, sum(states)) for target, *states in counts) if last else None

    def advance(self, now_s: float) -> None:
        """Take in what has come, and forget what is older than the window."""
        self._take_in()
        self.news += self._requests.close(now_s - SETTLE_S)
        for kept in self._samples.values():
            while kept and kept[0].time_s < now_s - self._window_s:
                kept.popleft()

    def _take_in(self) -> None:
        for _ in range(self._incoming.qsize()):
            sample = self._incoming.get()
            self._cost.observe(sample)
            if isinstance(sample, _DRAWN) and sample.deployment in self._deployments:
                self._samples[type(sample)].append(sample)
                self.news += 1

    def frames(self, changes: Sequence[LoadChange]) -> Frames:
        """The frames of the window, as of the last `advance`."""
        return Frames(
            requests=with_offered(self._requests.frame(), changes),
            changes=changes,
            deployments=self._frame(DeploymentSample),
            decisions=self._frame(DecisionSample),
            engine=engine_rows(self._frame(ReplicaSample)),
            cost=self._cost.frame(),
        )

    def _frame(self, kind: type[SampleBase]) -> pd.DataFrame:
        import pandas as pd

        rows = [msgspec.structs.astuple(one) for one in self._samples[kind]]
        return pd.DataFrame(rows, columns=columns(str(kind.__struct_config__.tag)))
