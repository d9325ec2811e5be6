"""A load on its way and what became of it: what `start_load` hands out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from workbench.errors import SettingError
from workbench.metrics.health import ClientHealth
from workbench.records import LoadChange, What
from workbench.workload.live_schedule import RateCurve, checked_burstiness, checked_rate
from workbench.workload.prompts import RandomPrompts
from workbench.workload.spec import LoadSpec

if TYPE_CHECKING:
    from workbench.clock import Clock
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


WORKER_RATE = 100.0
"""Requests per second that one load worker is trusted with."""


State = Literal["starting", "running", "paused", "ended"]


@dataclass
class LiveLoad(LoadRun):
    """A live load on its way. Await it for its `LoadResult`.

    `by_hand` once a rate was set in place of the plan; `ended` requests so far, `not_well` of
    them, `in_progress`, and `left_out`, which the client could not send in time. With a run folder,
    `records` has the latest alone.

    Every `set_` takes effect within half a second; what is no value raises SettingError and changes
    nothing. `changes` has what was changed and when.
    """

    load: LoadSpec = field(default_factory=LoadSpec)
    max_rate: float = WORKER_RATE
    max_model_len: int | None = None
    changes: list[LoadChange] = field(default_factory=list)
    in_progress: int = 0
    left_out: int = 0
    state: State = "starting"
    on_sent: Callable[[list[float]], None] | None = None
    by_hand: bool = False
    ended: int = 0
    not_well: int = 0
    _asked: list[LoadChange] = field(default_factory=list)
    _curve: RateCurve | None = None

    @property
    def rate(self) -> float:
        """Requests per second wanted now; 0 while paused."""
        return 0.0 if self._curve is None else self._curve.rate_at(self.clock())

    def set_rate(self, rate: float) -> float:
        """Send `rate` requests per second from now on, instead of the plan.

        The rate that holds is returned: one beyond `max_rate`, which the load workers cannot reach,
        is capped to it, and the change is marked.
        """
        held = min(checked_rate(rate), self.max_rate)
        note = None
        if held < rate:
            note = f"{rate:g} requests/s asked for, capped to what the load workers reach"
        self._ask("rate", held, note)
        self.by_hand = True
        return held

    def set_burstiness(self, burstiness: float | None) -> None:
        """The shape of the gamma law of the gaps: 1 is Poisson, below 1 bursty, None even."""
        self._ask("burstiness", checked_burstiness(burstiness))

    def set_output_tokens(self, tokens: int) -> None:
        """Ask for so many tokens in each further request."""
        assert isinstance(self.load.prompts, RandomPrompts)
        longest: Any = self.load.prompts.input
        if tokens < 1:
            raise SettingError(f"output_tokens is {tokens}: give at least 1")
        if self.max_model_len is not None and longest.high + tokens > self.max_model_len:
            raise SettingError(
                f"output_tokens is {tokens}: with {longest.high} of the prompt that is beyond "
                f"max_model_len = {self.max_model_len}; lower it"
            )
        self._ask("output_tokens", tokens)

    def pause(self) -> None:
        """Send nothing more until `resume`; what is in progress goes on."""
        self._ask("pause")

    def resume(self) -> None:
        """Go on where `pause` came, in the plan too."""
        self._ask("resume")

    def note(self, what: What, value: float | None = None, note: str | None = None) -> None:
        """Keep something else that was changed now, such as the scaling."""
        self._ask(what, value, note)

    def _ask(self, what: What, value: float | None = None, note: str | None = None) -> None:
        if self.state == "ended":
            raise SettingError(f"{what} cannot be changed: the load has ended. Start another")
        self._asked.append(LoadChange(self.clock(), what, value, note))
