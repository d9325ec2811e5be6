"""The specification of a load, and the plan made from it: the same for the same seed."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from workbench.workload.prompt import Prompt
from workbench.workload.prompt_generator import generate_prompts
from workbench.workload.prompts import PromptSet, RandomPrompts, TracePrompts
from workbench.workload.report import WorkloadReport, report_trace

if TYPE_CHECKING:
    import numpy as np

    from workbench.workload.tokenizer import Tokenizer
    from workbench.workload.trace_request import TraceRequest

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


class Plan(list[Arrival]):
    """Everything that a load will send, in order.

    `report` has what is notable about its trace or prompt file, such as the requests left out.
    """

    report: WorkloadReport | None = None


def make_plan(load: LoadSpec, tokenizer: Tokenizer, *, max_model_len: int | None = None) -> Plan:
    """Return everything that `load` will send. It depends only on the seed.

    Raises:
        SettingError: A length exceeds the model's context, or nothing would be sent.
        TraceError: A trace cannot be replayed.
    """
    import numpy as np

    requests, block_size, report = _replay(load, tokenizer, max_model_len)
    left_out = Counter[str]()
    arrivals_rng, prompts_rng = (np.random.default_rng([load.seed, stream]) for stream in (0, 1))
    times = _offsets(load, arrivals_rng, requests)
    prompts = generate_prompts(
        load.prompts,
        tokenizer,
        prompts_rng,
        trace=requests,
        block_size=block_size,
        max_model_len=max_model_len,
        left_out=left_out,
    )
    add_think_time = _think_time(load)
    plan = Plan(
        Arrival(at_s, add_think_time(turns))
        for at_s, turns in zip(times, sessions(prompts), strict=False)
    )
    if not plan:
        raise SettingError("the load is empty: no request is due before its end; lengthen it")
    plan.report = WorkloadReport.merged(report, left_out)
    return plan


def _replay(
    load: LoadSpec, tokenizer: Tokenizer, max_model_len: int | None
) -> tuple[list[TraceRequest] | None, int | None, WorkloadReport | None]:
    """Return the requests of the trace that fit, the size of its blocks, and what is notable."""
    from workbench.workload.trace_fit import fit_trace
    from workbench.workload.traces import replay_trace

    if not isinstance(load.arrivals, TraceReplay):
        return None, None, None
    recorded = isinstance(load.prompts, TracePrompts)
    trace = replay_trace(load.arrivals, content=recorded)
    fit = fit_trace(trace, load.arrivals, load.prompts, tokenizer, max_model_len)
    return fit.requests, trace.block_size, report_trace(trace, fit, recorded=recorded)


def sessions(prompts: Iterable[Prompt]) -> Iterator[tuple[Prompt, ...]]:
    """Yield the turns of each conversation, or a single prompt."""
    turns: list[Prompt] = []
    for prompt in prompts:
        alone = prompt.conversation is None
        if turns and (alone or prompt.conversation != turns[0].conversation):
            yield tuple(turns)
            turns = []
        turns.append(prompt)
    if turns:
        yield tuple(turns)


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
