"""A load on its way and what became of it: what `start_load` hands out."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workbench.metrics.health import ClientHealth

if TYPE_CHECKING:
    from workbench.loadgen.client import Clock
    from workbench.metrics.slo import SLO
    from workbench.metrics.summary import Summary
    from workbench.records import RequestRecord


@dataclass(repr=False)
class LoadResult:
    """What became of a load.

    `ended_early` says why it did not run to its end, if so; `incidents` what went wrong on the way.
    """

    records: Sequence[RequestRecord]
    health: ClientHealth
    planned: int
    digest: str
    warmup_s: float
    ended_early: str | None = None
    incidents: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"LoadResult({self.summary().headline()})"

    def summary(self, slo: SLO | None = None) -> Summary:
        """The figures, warm-up cut, with the verdict on the workers."""
        from workbench.metrics.summary import summarize

        return summarize(self.records, slo=slo, warmup_s=self.warmup_s, health=self.health)


@dataclass
class LoadRun:
    """A load on its way. Await it for its `LoadResult`; `stop()` ends it early.

    `start_s` is when its schedule begins, on the run's clock; None while workers come up.
    """

    planned: int
    clock: Clock
    records: list[RequestRecord] = field(default_factory=list)
    start_s: float | None = None
    _most: int | None = None
    _task: asyncio.Task[LoadResult] | None = None
    _stopped: str | None = None

    @property
    def left(self) -> int:
        """The most requests that may still end: in a closed loop, few once its time is over."""
        return (self.planned if self._most is None else self._most) - len(self.records)

    def stop(self, why: str = "stopped by hand") -> None:
        """Send nothing more; what is in progress is recorded as cancelled."""
        self._stopped = self._stopped or why

    def __await__(self) -> Generator[Any, None, LoadResult]:
        assert self._task is not None
        return self._task.__await__()
