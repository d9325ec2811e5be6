"""Replicas over time, on the run's own clock: a first view of what the cluster did."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from serving.errors import WorkbenchError

if TYPE_CHECKING:
    from workbench.client import Clock
    from workbench.endpoint import Endpoint

Sink = Callable[[Mapping[str, Any]], None]


class ReplicaWatch:
    """While open (``with``), samples each deployment's replicas into ``sink``.

    A sample has ``time_s``, ``deployment``, ``target``, ``running``, ``starting``, ``stopping``.
    It runs in a thread, so that a busy event loop does not thin it out; a service that is gone
    ends it, and ``gone`` says so.
    """

    def __init__(
        self, endpoint: Endpoint, clock: Clock, sink: Sink, interval_s: float = 1.0
    ) -> None:
        self._endpoint, self._clock, self._sink = endpoint, clock, sink
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="replica-watch", daemon=True)
        self.gone: str | None = None

    def __enter__(self) -> ReplicaWatch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.is_set() and self._sample():
            self._stop.wait(self._interval_s)
        self._sample()

    def _sample(self) -> bool:
        try:
            status = self._endpoint.status()
        except WorkbenchError as problem:
            self.gone = str(problem)
            return False
        now = self._clock()
        for name, replicas in status.deployments.items():
            self._sink({"time_s": now, "deployment": name, **replicas.counts()})
        return True
