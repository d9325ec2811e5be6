"""A load in the hand: rate, burstiness and output length change while it runs.

    load = LoadSpec(arrivals=Stages(stages=[(8, 60), (8, 60), (0, 0), (0, 60)]))
    running = start_live_load(endpoint, load, run=run)
    running.set_rate(4)        # takes the place of the plan
    result = await running     # ends with the plan; after `set_rate`, with `stop()`

Left alone it sends what its plan says, at the same times for the same seed. What was changed and
when is kept in the run's `load.jsonl`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from workbench.endpoints.remote import Remote, context_length
from workbench.errors import SettingError
from workbench.load_change import LoadChange, What
from workbench.loadgen.handle import LoadRun
from workbench.loadgen.progress import Progress, live_progress
from workbench.workload.live_schedule import RateCurve, checked_burstiness, checked_rate
from workbench.workload.prompt_generator import RandomPrompts
from workbench.workload.spec import LoadSpec

if TYPE_CHECKING:
    from workbench.loadgen.client import Clock
    from workbench.records import RequestRecord
    from workbench.runs.run import Run

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


def start_live_load(
    target: Remote,
    load: LoadSpec,
    *,
    max_rate: float | None = None,
    run: Run | None = None,
    clock: Clock | None = None,
    progress: Progress | str | None = "lines",
    on_record: Callable[[RequestRecord], None] | None = None,
    on_sent: Callable[[list[float]], None] | None = None,
) -> LiveLoad:
    """Begin to send `load` to `target`, in the running event loop, and let it be steered.

    `max_rate` is the most that will be set by hand (100 a second for each load worker that the plan
    needs, if absent). `on_sent` sees the times of requests sent, the rest is as in `start_load`.

    Raises, before anything is sent: SettingError for a load that cannot be steered, or that the
    model or the endpoint cannot take; EndpointGoneError if nothing answers.
    """
    import numpy as np

    from workbench.loadgen.client import start_clock
    from workbench.loadgen.live_runner import LiveDrive
    from workbench.workload.prompt_generator import prompts
    from workbench.workload.tokenizer import load_tokenizer

    _check_steerable(load)
    tokenizer, length = load_tokenizer(target.tokenizer), context_length(target)
    prompts(load.prompts, tokenizer, np.random.default_rng(0), max_model_len=length)
    needed = max(load.needed_workers, -(-int(checked_rate(max_rate or 0)) // int(WORKER_RATE)))
    running = LiveLoad(
        planned=0,
        clock=clock or start_clock(),
        load=load,
        max_rate=max_rate or needed * WORKER_RATE,
        max_model_len=length,
        on_sent=on_sent,
    )
    said = live_progress(progress, running)
    drive = LiveDrive(target, load, [], running, run, said, on_record)
    drive.ordinary, drive.needed = tokenizer.ordinary, needed
    running._task = asyncio.get_running_loop().create_task(drive.run())
    return running


def _check_steerable(load: LoadSpec) -> None:
    if load.arrivals.kind in ("closed", "trace"):
        raise SettingError(
            f"arrivals.kind is {load.arrivals.kind!r}, which has no rate to change: give constant, "
            "poisson, gamma, ramp, steps or stages"
        )
    if load.prompts.kind != "random":
        raise SettingError(f"prompts.kind is {load.prompts.kind!r}: a live load sends random ones")
    if load.count is not None:
        raise SettingError(f"count is {load.count}: a live load ends by its plan or duration_s")
