"""What `start_load` and `start_live_load` return: a load in progress, and its result."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from workbench.errors import SettingError
from workbench.metrics.health import ClientHealth
from workbench.records import ChangeKind, LoadChange
from workbench.workload.prompts import RandomPrompts
from workbench.workload.rate_curve import RateCurve, check_burstiness, check_rate
from workbench.workload.spec import WORKER_RATE, LoadSpec

if TYPE_CHECKING:
    from workbench.clock import Clock
    from workbench.metrics.slo import SLO
    from workbench.metrics.summary import Summary
    from workbench.records import RequestRecord
    from workbench.runs.run import Run


@dataclass(repr=False)
class LoadResult:
    """The result of a load.

    `ended_early` is the reason why it ended before its plan, `incidents` are problems meanwhile.
    `workload` has what was left out or changed of a trace or a prompt file.
    `notes` say which parameters the server rejected and which streams were irregular.
    """

    records: Sequence[RequestRecord]
    health: ClientHealth
    planned: int
    digest: str
    warmup_s: float
    ended_early: str | None = None
    incidents: list[str] = field(default_factory=list)
    workload: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"LoadResult({self.summary().headline()})"

    def summary(self, slo: SLO | None = None) -> Summary:
        """Return the metrics without the warm-up, and the health of the load workers."""
        from workbench.metrics.summary import summarize

        summary = summarize(self.records, slo=slo, warmup_s=self.warmup_s, health=self.health)
        return summary.model_copy(update={"workload": self.workload})


class StoredRecords(Sequence["RequestRecord"]):
    """The records in a run's folder, which are read again each time they are used."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __iter__(self) -> Iterator[RequestRecord]:
        return self._run.records()

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, index: Any) -> Any:
        return list(self)[index]


@dataclass(eq=False)
class LoadRun:
    """A load in progress. Await it for its `LoadResult`; `stop()` ends it early.

    `start_s` is when its schedule begins, on the run's clock; None while the workers start.
    `cancelled` counts the requests that an early end cut.
    """

    planned: int
    clock: Clock
    records: list[RequestRecord] = field(default_factory=list)
    start_s: float | None = None
    cancelled: int = 0
    _at_most: int | None = None
    _task: asyncio.Task[LoadResult] | None = None
    _stopped: str | None = None

    @property
    def remaining(self) -> int:
        """Requests that may still end; only a few in a closed loop whose duration is over."""
        return (self.planned if self._at_most is None else self._at_most) - len(self.records)

    def add(self, record: RequestRecord) -> None:
        """Count a request that ended."""
        self.records.append(record)
        self.cancelled += record.status == "cancelled"

    def stop(self, reason: str = "stopped by the user") -> None:
        """Send nothing more. Requests in progress are recorded as cancelled."""
        self._stopped = self._stopped or reason

    def __await__(self) -> Generator[Any, None, LoadResult]:
        assert self._task is not None
        return self._task.__await__()


def interrupted(cancelled: int) -> str:
    """Return the line that a load shows after an interrupt."""
    return f"interrupted: {cancelled:,} request{'' if cancelled == 1 else 's'} cancelled"


LoadState = Literal["starting", "running", "paused", "ended"]


@dataclass(eq=False)
class LiveLoad(LoadRun):
    """A live load in progress. Await it for its `LoadResult`.

    It ends with its plan, once all requests are answered. A rate set before that replaces the plan
    and its duration, and the load then continues until `stop()`; so does a paused load.

    `manual_rate` is true once `set_rate` has replaced the plan. `ended` counts the requests that
    ended, `failed` those of them that failed, were shed or timed out, `in_progress` those that have
    not ended, and `dropped` those that the client could not send in time. With a run folder,
    `records` has the latest only.

    Every change takes effect within half a second. A value out of range raises SettingError and
    changes nothing. `changes` has what was changed and when.
    """

    load: LoadSpec = field(default_factory=LoadSpec)
    max_rate: float = WORKER_RATE
    max_model_len: int | None = None
    changes: list[LoadChange] = field(default_factory=list)
    in_progress: int = 0
    dropped: int = 0
    state: LoadState = "starting"
    on_sent: Callable[[list[float]], None] | None = None
    manual_rate: bool = False
    ended: int = 0
    failed: int = 0
    _requested: list[LoadChange] = field(default_factory=list)
    _curve: RateCurve | None = None

    @property
    def rate(self) -> float:
        """The current target rate, in requests per second; 0 while paused."""
        return 0.0 if self._curve is None else self._curve.rate_at(self.clock())

    @property
    def plan_ends_s(self) -> float | None:
        """When the plan is over, on the run's clock.

        None before the start, while paused, and if the plan has no end or was replaced.
        """
        return None if self._curve is None else self._curve.ends_s

    def add(self, record: RequestRecord) -> None:
        """Count a request that ended."""
        super().add(record)
        self.ended += 1
        self.failed += record.status not in ("ok", "cancelled")

    def set_rate(self, rate: float) -> float:
        """Send `rate` requests per second from now on, instead of the plan.

        Returns:
            The rate that applies. A rate above `max_rate`, which the load workers cannot reach, is
            capped, and the change is marked.

        Raises:
            SettingError: The rate is out of range, or the load has ended.
        """
        capped = self.follow_rate(rate)
        self.manual_rate = True
        return capped

    def follow_rate(self, rate: float) -> float:
        """Do the same for a program, such as the phases of an experiment, that is the plan itself.

        The rate does not count as set by a person.
        """
        capped = min(check_rate(rate), self.max_rate)
        note = None
        if capped < rate:
            note = f"{rate:g} requests/s requested, capped to what the load workers reach"
        self._request("rate", capped, note)
        return capped

    def set_burstiness(self, burstiness: float | None) -> None:
        """Set the shape of the gamma distribution of the gaps: 1 is Poisson, None even gaps.

        Raises:
            SettingError: The value is out of range, or the load has ended.
        """
        self._request("burstiness", check_burstiness(burstiness))

    def set_output_tokens(self, tokens: int) -> None:
        """Request `tokens` output tokens in each further request.

        Raises:
            SettingError: Prompt and answer could exceed the context, or the load has ended.
        """
        assert isinstance(self.load.prompts, RandomPrompts)
        prompt: Any = self.load.prompts.input
        if tokens < 1:
            raise SettingError(f"output_tokens must be at least 1, got {tokens}")
        if self.max_model_len is not None and prompt.high + tokens > self.max_model_len:
            raise SettingError(
                f"output_tokens = {tokens} and a prompt of {prompt.high} are beyond "
                f"max_model_len = {self.max_model_len}; lower output_tokens"
            )
        self._request("output_tokens", tokens)

    def pause(self) -> None:
        """Send nothing more until `resume`. Requests in progress continue."""
        self._request("pause")

    def resume(self) -> None:
        """Continue from the point of `pause`, in the plan too."""
        self._request("resume")

    def log_change(self, kind: ChangeKind, note: str) -> None:
        """Record a change of something other than the load, such as the scaling."""
        self._request(kind, note=note)

    def _request(
        self, kind: ChangeKind, value: float | None = None, note: str | None = None
    ) -> None:
        if self.state == "ended" or self._stopped is not None:
            raise SettingError(
                f"{kind} cannot be changed, because the load has ended; start another load"
            )
        self._requested.append(LoadChange(self.clock(), kind, value, note))
