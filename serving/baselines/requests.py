"""Requests and token events that pass between a replica and its engine, and the engine's stats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Finish = Literal["length", "stop"]


class Job(NamedTuple):
    """A request for the engine. It ends at an end token unless `ignore_eos` is set."""

    number: int
    prompt: list[int]
    max_tokens: int
    ignore_eos: bool


class Event(NamedTuple):
    """New tokens of a request, and how it ended if it did."""

    number: int
    tokens: list[int]
    finish: Finish | None = None
    error: str | None = None


Emit = Callable[[list[Event]], None]
"""Sends events to the replica. An empty list sends the engine's stats instead."""


@dataclass(slots=True)
class ActiveRequest:
    """A request in progress.

    `output` are the tokens that the client has. `resubmitted_after` is how many of them existed
    when the request was submitted again.
    """

    job: Job
    output: list[int] = field(default_factory=list)
    ended: bool = False
    resubmitted_after: int = 0

    @property
    def token_ids(self) -> list[int]:
        """The prompt and the output so far, from which generation continues."""
        return self.job.prompt + self.output

    @property
    def remaining(self) -> int:
        """Tokens still to generate."""
        return self.job.max_tokens - len(self.output)

    def append(self, token: int, end_tokens: frozenset[int]) -> Event:
        """Add a token, and return the event to send."""
        self.output.append(token)
        finish: Finish | None = None
        if not self.job.ignore_eos and token in end_tokens:
            finish = "stop"
        elif self.remaining <= 0:
            finish = "length"
        self.ended = finish is not None
        return Event(self.job.number, [token], finish)


@dataclass(slots=True)
class BaselineStats:
    """The counters of an engine since it started, as the route `/load` shows it to the owner.

    A slot is room for one token in the KV cache. `kv_slots` are the slots that batches held at
    their end, and `kv_used` those with a token of a request. The others are padding: left of
    shorter prompts, and after answers that ended early. `out_of_memory` has an entry for each batch
    that did not fit: its size, and the tokens in each of its rows.
    """

    batches: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    steps: int = 0
    largest_batch: int = 0
    kv_slots: int = 0
    kv_used: int = 0
    kv_bytes_per_token: int | None = None
    out_of_memory: list[dict[str, int]] = field(default_factory=list)
    device: str = ""
    dtype: str = ""
    attention: str = ""
    threads: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return {name: getattr(self, name) for name in self.__slots__}


def is_out_of_memory(error: object) -> bool:
    """Return whether an error of torch, or its text, says that a GPU or a CPU ran out of memory."""
    if isinstance(error, MemoryError):
        return True
    return any(text in str(error) for text in ("out of memory", "can't allocate memory"))
