"""The specification of a load, and the plan made from it: the same for the same seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import msgspec
from pydantic import Field, model_validator

from serving.spec.base import Strict
from workbench.errors import SettingError
from workbench.workload.arrivals import (
    Arrivals,
    ClosedLoop,
    OpenArrivals,
    Poisson,
    Seconds,
    TraceReplay,
    kinds_of,
)
from workbench.workload.prompt_generator import Prompt, generate_prompts
from workbench.workload.prompts import PromptSet, RandomPrompts

if TYPE_CHECKING:
    import numpy as np

    from workbench.workload.tokenizer import Tokenizer
    from workbench.workload.traces import TraceRequest

WORKER_RATE = 100.0
"""Requests per second that one load worker sends reliably."""

WORKER_CONCURRENCY = 64
"""Users of a closed loop that one load worker serves."""


class LoadSpec(Strict):
    """A load: the prompts, their arrival times, and the duration."""

    arrivals: Arrivals = Field(
        Poisson(rate=1.0), description="Arrival process: when requests are sent."
    )
    prompts: PromptSet = Field(
        RandomPrompts(input=64, output=64),
        description="Prompts and the output lengths.",
    )
    duration_s: Seconds | None = Field(None, description="Duration of sending, in seconds.")
    count: int | None = Field(
        None, ge=1, description="Maximum number of requests, or of conversations."
    )
    warmup_s: float = Field(
        0, ge=0, description="Seconds at the start that are excluded from all metrics."
    )
    timeout_s: Seconds | None = Field(120, description="Timeout of a request, in seconds.")
    patience_s: Seconds = Field(
        2, description="Seconds of only refused connections after which the load ends."
    )
    seed: int = Field(0, ge=0, description="Seed of the arrivals and the prompts.")
    workers: int | None = Field(
        None, ge=1, le=256, description="Number of load workers; None: chosen from the rate."
    )
    temperature: float = Field(0, ge=0, description="Sampling temperature.")
    ignore_eos: bool = Field(True, description="Whether to generate the full output length.")
    tenant: str | None = Field(None, description="Name of the tenant in the records.")

    @model_validator(mode="after")
    def _ends(self) -> LoadSpec:
        if isinstance(self.arrivals, ClosedLoop) and self.count is None:
            raise ValueError("LoadSpec.count is missing: a closed loop has no end; give it")
        if self.duration_s is not None and self.warmup_s >= self.duration_s:
            raise ValueError(
                f"LoadSpec.warmup_s = {self.warmup_s:g} leaves nothing of duration_s = "
                f"{self.duration_s:g}; shorten it"
            )
        return self

    def at(self, load: float, seed: int | None = None) -> LoadSpec:
        """Return this load at another rate or, in a closed loop, at another `max_concurrency`.

        Raises:
            SettingError: The arrivals have no single rate.
            SpecError: The rate is out of range.
        """
        fields = self.arrivals.model_dump()
        name = "max_concurrency" if isinstance(self.arrivals, ClosedLoop) else "rate"
        if name not in fields:
            raise SettingError(
                f"arrivals of kind {self.arrivals.kind!r} have no single rate: give "
                f"{kinds_of(OpenArrivals, field='rate')}, or a closed loop"
            )
        fields[name] = int(load) if name == "max_concurrency" else load
        arrivals = type(self.arrivals)(**fields)
        return self.model_copy(
            update={"arrivals": arrivals, "seed": self.seed if seed is None else seed}
        )

    @property
    def needed_workers(self) -> int:
        """One worker per 100 requests/s at the peak, or per 64 users of a closed loop."""
        if self.workers is not None:
            return self.workers
        if isinstance(self.arrivals, ClosedLoop):
            return -(-self.arrivals.max_concurrency // WORKER_CONCURRENCY)
        if isinstance(self.arrivals, TraceReplay):
            return 2
        return min(64, max(1, -(-int(self.arrivals.peak_rate) // int(WORKER_RATE))))


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request, or the turns of a conversation, which are sent one after another.

    `at_s` is when the first is due, in seconds since the start of the load; None in a closed loop.
    """

    at_s: float | None
    turns: tuple[Prompt, ...]


def make_plan(
    load: LoadSpec, tokenizer: Tokenizer, *, max_model_len: int | None = None
) -> list[Arrival]:
    """Return everything that `load` will send. It depends only on the seed.

    Raises:
        SettingError: A length exceeds the model's context, or nothing would be sent.
        TraceError: A trace cannot be replayed.
    """
    import numpy as np

    from workbench.workload.traces import replay_trace

    trace = replay_trace(load.arrivals) if isinstance(load.arrivals, TraceReplay) else None
    arrivals_rng, prompts_rng = (np.random.default_rng([load.seed, stream]) for stream in (0, 1))
    times = _offsets(load, arrivals_rng, trace)
    prompts = generate_prompts(
        load.prompts, tokenizer, prompts_rng, trace=trace, max_model_len=max_model_len
    )
    add_think_time = _think_time(load)
    turns = load.prompts.turns if load.prompts.kind == "conversations" else 1
    plan = [
        Arrival(at_s, add_think_time(texts))
        for at_s in times
        if len(texts := tuple(islice(prompts, turns))) == turns
    ]
    if not plan:
        raise SettingError("the load is empty: no request is due before its end; lengthen it")
    return plan


def _think_time(load: LoadSpec) -> Callable[[tuple[Prompt, ...]], tuple[Prompt, ...]]:
    """Return a function that gives a first turn the wait of a closed loop's user before it."""
    import numpy as np

    if not isinstance(load.arrivals, ClosedLoop) or not load.arrivals.think_s:
        return lambda turns: turns
    mean, rng = load.arrivals.think_s, np.random.default_rng([load.seed, 2])
    return lambda turns: (replace(turns[0], think_s=float(rng.exponential(mean))), *turns[1:])


def _offsets(
    load: LoadSpec, rng: np.random.Generator, trace: Sequence[TraceRequest] | None
) -> Iterator[float | None]:
    from workbench.workload.schedule import offsets

    if isinstance(load.arrivals, ClosedLoop):
        return iter([None] * (load.count or 0))
    times = None if trace is None else [request.offset_s for request in trace]
    return offsets(load.arrivals, rng, duration_s=load.duration_s, count=load.count, trace=times)


def plan_digest(plan: Sequence[Arrival]) -> str:
    """Return the SHA-256 of every send time and prompt. Equal digests mean equal requests."""
    return hashlib.sha256(msgspec.json.encode(plan)).hexdigest()
