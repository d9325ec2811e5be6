"""The load as data, and the plan made from it: what is sent when, the same for the same seed."""

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
from workbench.workload.arrivals import Arrivals, ClosedLoop, Poisson, Seconds, TraceReplay
from workbench.workload.prompt_generator import Prompt, prompts
from workbench.workload.prompts import PromptSet, RandomPrompts

if TYPE_CHECKING:
    import numpy as np

    from workbench.workload.tokenizer import Tokenizer
    from workbench.workload.traces import TraceRequest


class LoadSpec(Strict):
    """What is sent, when, and for how long."""

    arrivals: Arrivals = Field(Poisson(rate=1.0), description="When requests are sent.")
    prompts: PromptSet = Field(
        RandomPrompts(input=64, output=64), description="What is sent, and how much is asked for."
    )
    duration_s: Seconds | None = Field(None, description="Send for so many seconds.")
    count: int | None = Field(None, ge=1, description="Send at most so many (conversations).")
    warmup_s: float = Field(0, ge=0, description="Seconds at the start that no figure counts.")
    timeout_s: Seconds | None = Field(120, description="Give a request up after so long.")
    patience_s: Seconds = Field(
        2, description="End the load when nothing but refused connections came for so long."
    )
    seed: int = Field(0, ge=0, description="Of the arrivals and the prompts.")
    workers: int | None = Field(None, ge=1, le=256, description="Load workers; None: by the rate.")
    temperature: float = Field(0, ge=0, description="Of the sampling.")
    ignore_eos: bool = Field(True, description="Ask for the full output length.")
    tenant: str | None = Field(None, description="Kept in the records.")

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
        """The same at another rate, or in a closed loop at another `max_concurrency`.

        Raises SettingError for arrivals that have no one rate, SpecError for a rate that is none.
        """
        fields = self.arrivals.model_dump()
        name = "max_concurrency" if isinstance(self.arrivals, ClosedLoop) else "rate"
        if name not in fields:
            raise SettingError(
                f"arrivals.kind is {self.arrivals.kind!r}, which has no one rate: give constant, "
                "poisson, gamma or closed"
            )
        fields[name] = int(load) if name == "max_concurrency" else load
        arrivals = type(self.arrivals)(**fields)
        return self.model_copy(
            update={"arrivals": arrivals, "seed": self.seed if seed is None else seed}
        )

    @property
    def needed_workers(self) -> int:
        """One for every 100 requests a second at the peak, or 64 at once in a closed loop."""
        if self.workers is not None:
            return self.workers
        if isinstance(self.arrivals, ClosedLoop):
            return -(-self.arrivals.max_concurrency // 64)
        if isinstance(self.arrivals, TraceReplay):
            return 2
        peak = max(max(piece.from_rate, piece.to_rate) for piece in self.arrivals.pieces())
        return min(64, max(1, -(-int(peak) // 100)))


@dataclass(frozen=True, slots=True)
class Session:
    """One arrival: a request, or the turns of a conversation, one after the other.

    `at_s` is when the first is due, in seconds since the start of the load; None in a closed loop.
    """

    at_s: float | None
    turns: tuple[Prompt, ...]


def plan(
    load: LoadSpec, tokenizer: Tokenizer, *, max_model_len: int | None = None
) -> list[Session]:
    """All that will be sent. The seed decides it, byte for byte; arrivals and prompts apart.

    Raises SettingError for lengths beyond the model's context and TraceError for a trace that
    cannot be replayed, so that nothing of it has been sent.
    """
    import numpy as np

    from workbench.workload.traces import replay

    trace = replay(load.arrivals) if isinstance(load.arrivals, TraceReplay) else None
    rng = {name: np.random.default_rng([load.seed, i]) for i, name in enumerate(("at", "text"))}
    at = _offsets(load, rng["at"], trace)
    made = prompts(load.prompts, tokenizer, rng["text"], trace=trace, max_model_len=max_model_len)
    think = _thinking(load)
    turns = load.prompts.turns if load.prompts.kind == "conversations" else 1
    sessions = [
        Session(due, think(said)) for due in at if len(said := tuple(islice(made, turns))) == turns
    ]
    if not sessions:
        raise SettingError("the load is empty: no request is due before its end; lengthen it")
    return sessions


def _thinking(load: LoadSpec) -> Callable[[tuple[Prompt, ...]], tuple[Prompt, ...]]:
    """Gives the first turn of each session the wait that a closed loop's users take before it."""
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


def digest(sessions: Sequence[Session]) -> str:
    """SHA-256 over every send time and every prompt: two runs with the same one sent the same."""
    return hashlib.sha256(msgspec.json.encode(sessions)).hexdigest()
