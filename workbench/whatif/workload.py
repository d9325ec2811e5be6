"""The requests of a simulation: when they are due, how long they are, and what they follow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from workbench.errors import SettingError
from workbench.whatif.state import REQUEST
from workbench.workload.arrivals import ClosedLoop, TraceReplay
from workbench.workload.prompts import FilePrompts, FromTrace, RandomPrompts
from workbench.workload.spec import LoadSpec, make_plan
from workbench.workload.trace_request import TraceRequest
from workbench.workload.traces import replay_trace

if TYPE_CHECKING:
    from workbench.whatif.state import Floats, Ints
    from workbench.workload.prompt import Prompt
    from workbench.workload.tokenizer import Tokenizer


class _AnyTokens:
    """Stands in for a tokenizer where only the number of tokens counts."""

    regular_token_ids = tuple(range(1000))


@dataclass
class Workload:
    """Requests by index: first those with a known due time, in the order of these times.

    Attributes:
        due_s: When a request is due, infinity for one that follows another.
        prompt: Tokens of the prompt.
        output: Tokens of the answer.
        group: Number of the prompts that share a prefix, -1 for none.
        prefix: Tokens that the prompt shares with its group.
        successor: The request that follows this one, -1 for none.
        think_s: Seconds between the end of a request and the one that follows.
        sessions: In a closed loop, the requests that users continue with, in order.
        duration_s: Seconds of sending, None if it ends with the last request.
        skipped: Requests that were left out, by reason.
    """

    due_s: Floats
    prompt: Ints
    output: Ints
    group: Ints
    prefix: Ints
    successor: Ints
    think_s: Floats
    sessions: Ints
    duration_s: float | None = None
    warmup_s: float = 0.0
    skipped: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.due_s)

    @classmethod
    def of(
        cls,
        load: LoadSpec | Self | Iterable[TraceRequest],
        *,
        max_model_len: int | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> Workload:
        """Return the requests of a load, or of a trace as `workbench.workload.traces` reads it.

        Requests of a trace that do not fit the context, or have no lengths, are left out and
        counted in `skipped`.

        Args:
            load: A load, or the requests of a trace.
            max_model_len: Tokens that prompt and answer may have together.
            tokenizer: Counts the tokens of prompts from a file.

        Raises:
            SettingError: The load cannot be sent, or nothing is left of it.
        """
        if isinstance(load, Workload):
            return load
        if not isinstance(load, LoadSpec):
            return _of_trace(list(load), max_model_len)
        if isinstance(load.arrivals, TraceReplay) and _has_lengths_of_trace(load):
            workload = _of_trace(replay_trace(load.arrivals).requests, max_model_len)
        else:
            workload = _of_plan(load, max_model_len, tokenizer)
        workload.duration_s, workload.warmup_s = load.duration_s, load.warmup_s
        return workload

    def table(self) -> Any:
        """Return the requests as the compiled functions take them, before anything happened."""
        table = np.zeros(len(self), REQUEST)
        for name in _PER_REQUEST:
            table[name] = getattr(self, name)
        table["sent_s"] = table["first_s"] = table["end_s"] = np.nan
        table["replica"] = -1
        table["token_at"] = np.cumsum(self.output) - self.output
        table["session"][: len(self.sessions)] = self.sessions
        return table

    def without(self, unfit: Ints, reason: str) -> Workload:
        """Return the workload without the sessions that contain a request of the mask `unfit`."""
        for request in range(len(self) - 1, -1, -1):
            following = self.successor[request]
            if following >= 0 and unfit[following]:
                unfit[request] = True
        for request in range(len(self)):
            following = self.successor[request]
            if following >= 0 and unfit[request]:
                unfit[following] = True
        number = np.cumsum(~unfit) - 1
        kept = {name: getattr(self, name)[~unfit] for name in _PER_REQUEST}
        kept["successor"] = np.where(kept["successor"] < 0, -1, number[kept["successor"]])
        sessions = number[self.sessions[~unfit[self.sessions]]]
        skipped = self.skipped | {reason: self.skipped.get(reason, 0) + int(unfit.sum())}
        left = Workload(
            **kept,
            sessions=sessions,
            duration_s=self.duration_s,
            warmup_s=self.warmup_s,
            skipped={name: count for name, count in skipped.items() if count},
        )
        if not len(left):
            raise SettingError(f"nothing is left of the load: {left.skipped_text()}")
        return left

    def skipped_text(self) -> str:
        """Return which requests were left out, and why; empty if none was."""
        return ", ".join(f"{count} requests {reason}" for reason, count in self.skipped.items())


_PER_REQUEST = ("due_s", "prompt", "output", "group", "prefix", "successor", "think_s")
TOO_LONG = "do not fit the context"
NO_LENGTHS = "have no lengths"


def _has_lengths_of_trace(load: LoadSpec) -> bool:
    prompts = load.prompts
    return (
        isinstance(prompts, RandomPrompts)
        and isinstance(prompts.input, FromTrace)
        and isinstance(prompts.output, FromTrace)
        and not prompts.shared_prefix_tokens
    )


def _of_trace(trace: Sequence[TraceRequest], max_model_len: int | None) -> Workload:
    count = len(trace)
    prompt = np.array([request.prompt_tokens or 0 for request in trace], np.int32)
    output = np.array([request.output_tokens or 0 for request in trace], np.int32)
    due_s = np.array([request.offset_s for request in trace], float)
    workload = single_requests(due_s[:count], prompt, output)
    workload = workload.without((prompt == 0) | (output == 0), NO_LENGTHS)
    if max_model_len is None:
        return workload
    return workload.without(workload.prompt + workload.output > max_model_len, TOO_LONG)


def single_requests(due_s: Floats, prompt: Ints, output: Ints) -> Workload:
    """Return requests that follow no other and share no prefix, sorted by the time they are due."""
    count, order = len(due_s), np.argsort(due_s, kind="stable")
    return Workload(
        due_s=np.asarray(due_s, float)[order],
        prompt=np.asarray(prompt, np.int32)[order],
        output=np.asarray(output, np.int32)[order],
        group=np.full(count, -1, np.int32),
        prefix=np.zeros(count, np.int32),
        successor=np.full(count, -1, np.int32),
        think_s=np.zeros(count),
        sessions=np.zeros(0, np.int64),
    )


def _of_plan(load: LoadSpec, max_model_len: int | None, tokenizer: Tokenizer | None) -> Workload:
    if tokenizer is None:
        if isinstance(load.prompts, FilePrompts):
            raise SettingError(
                "tokenizer is missing: prompts of a file are counted with it; give the model's, "
                "workbench.workload.tokenizer"
            )
        tokenizer = _AnyTokens()  # type: ignore[assignment]
    plan = make_plan(load, tokenizer, max_model_len=max_model_len)  # type: ignore[arg-type]
    users = load.arrivals.max_concurrency if isinstance(load.arrivals, ClosedLoop) else len(plan)
    rows: list[tuple[float, Prompt, int]] = []
    for number, session in enumerate(plan):
        first = session.turns[0]
        start_s = first.think_s if session.at_s is None else session.at_s
        rows.append((start_s if number < users else np.inf, first, number))
    rows += [
        (np.inf, turn, number) for number, session in enumerate(plan) for turn in session.turns[1:]
    ]
    rows.sort(key=lambda row: row[0])
    return _linked(rows, load, users, len(plan))


def _linked(
    rows: list[tuple[float, Prompt, int]], load: LoadSpec, users: int, sessions: int
) -> Workload:
    """Return the workload of rows with the time, the prompt and the session of each request."""
    prompts = [prompt for _, prompt, _ in rows]
    workload = single_requests(
        np.array([due_s for due_s, _, _ in rows]),
        np.array([prompt.prompt_tokens for prompt in prompts]),
        np.array([prompt.max_tokens for prompt in prompts]),
    )
    workload.think_s = np.array([prompt.think_s for prompt in prompts])
    at = {(number, prompt.turn): index for index, (_, prompt, number) in enumerate(rows)}
    for (number, turn), index in at.items():
        workload.successor[index] = at.get((number, turn + 1), -1)
    workload.sessions = np.array([at[number, 0] for number in range(users, sessions)], np.int64)
    _group(workload, prompts, load)
    return workload


def _group(workload: Workload, prompts: list[Prompt], load: LoadSpec) -> None:
    """Note which prompts share a prefix: a drawn one, or the turn of a conversation before."""
    if isinstance(load.prompts, RandomPrompts) and load.prompts.shared_prefix_tokens:
        tokens = load.prompts.shared_prefix_tokens
        numbers: dict[object, int] = {}
        workload.prefix[:] = tokens
        workload.group = np.array(
            [numbers.setdefault(prompt.content[:tokens], len(numbers)) for prompt in prompts],
            np.int32,
        )
    elif load.prompts.kind == "conversations":
        workload.group = np.array([prompt.conversation for prompt in prompts], np.int32)
        before = workload.successor >= 0
        workload.prefix[workload.successor[before]] = workload.prompt[before]
