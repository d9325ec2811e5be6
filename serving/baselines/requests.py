"""One request as engines see it, what they say of it, and what they count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Finish = Literal["length", "stop"]


class Job(NamedTuple):
    """A request on its way to the engine; it ends early at an end token unless that is ignored."""

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
"""Sends events to the replica; none, and it sends what was counted."""


@dataclass(slots=True)
class Row:
    """A request at work. `made` are the tokens that its client has.

    `before` are those of them that were made before the request was submitted again.
    """

    job: Job
    made: list[int] = field(default_factory=list)
    ended: bool = False
    before: int = 0

    @property
    def ids(self) -> list[int]:
        """What to go on from: the prompt, and what was made of it before a batch broke off."""
        return self.job.prompt + self.made

    @property
    def left(self) -> int:
        """Tokens still to make."""
        return self.job.max_tokens - len(self.made)

    def take(self, token: int, eos: frozenset[int]) -> Event:
        """Add one token; the event to send, with the end if this is it."""
        self.made.append(token)
        finish: Finish | None = None
        if not self.job.ignore_eos and token in eos:
            finish = "stop"
        elif self.left <= 0:
            finish = "length"
        self.ended = finish is not None
        return Event(self.job.number, [token], finish)


@dataclass(slots=True)
class Stats:
    """What an engine did since it started; `/load` shows it, to the owner.

    A slot is the room of one token in the KV cache. `kv_slots` are those that batches held when
    they ended, `kv_used` those with a token that its request asked for: the rest is padding, to the
    left of shorter prompts and behind answers that had ended. `out_of_memory` has an entry for each
    batch that did not fit: its size, and the tokens of each of its rows.
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

    def plain(self) -> dict[str, Any]:
        """As JSON shows it."""
        return {name: getattr(self, name) for name in self.__slots__}


def is_out_of_memory(error: object) -> bool:
    """Whether an error of torch, or its text, says that memory ran out, on a GPU or a CPU."""
    if isinstance(error, MemoryError):
        return True
    return any(words in str(error) for words in ("out of memory", "can't allocate memory"))
