"""What is sent: seeded prompt sets with exact token counts. Pure but for `FilePrompts`' one read.

Random prompts and conversations are token ids for `/v1/completions`: text made of drawn tokens
would be cut into others by the server, and its length would be a guess. They are drawn from the
ordinary tokens alone, so that none of them ends or shapes a prompt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import msgspec

from workbench.errors import SettingError
from workbench.workload.prompts import (
    MAX_TOKENS,
    Conversations,
    Drawn,
    FilePrompts,
    Fixed,
    FromTrace,
    Length,
    PromptSet,
    RandomPrompts,
)

if TYPE_CHECKING:
    import numpy as np

    from workbench.workload.tokenizer import Tokenizer
    from workbench.workload.traces import TraceRequest


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request: text or token ids for `/v1/completions`, or the messages of a chat.

    `prompt_tokens` is what the server will count and `max_tokens` what to ask for. Of a
    conversation: its number, the turn (from 0), and the seconds to wait after the turn before; a
    first turn has a wait only of a user in a closed loop.
    """

    content: str | tuple[int, ...] | tuple[dict[str, str], ...]
    prompt_tokens: int
    max_tokens: int
    conversation: int | None = None
    turn: int = 0
    think_s: float = 0.0


def prompts(
    spec: PromptSet,
    tokenizer: Tokenizer,
    rng: np.random.Generator,
    *,
    trace: Sequence[TraceRequest] | None = None,
    max_model_len: int | None = None,
) -> Iterator[Prompt]:
    """Prompts without end or, with a `FromTrace` length, one for each request of `trace`.

    The same seed gives the same prompts, and more of them start with the same ones. The turns of a
    conversation follow each other. All is checked, and a file is read, before this returns.

    Raises SettingError, naming the field, for lengths that could exceed `max_model_len` (prompt and
    answer together), and for a `FromTrace` length with no trace or with no count in it; naming the
    line and its field, for a file that is empty, cannot be read, or has a broken line.
    """
    if isinstance(spec, FilePrompts):
        return _file_prompts(spec, tokenizer, rng, trace, max_model_len)
    if isinstance(spec, RandomPrompts):
        return _random_prompts(spec, tokenizer, rng, trace, max_model_len)
    most = spec.system_tokens + spec.turns * (spec.input.high + spec.output.high)
    what = f"Conversations.system_tokens, and input and output of turns = {spec.turns},"
    _check_fit(what, most, max_model_len)
    return _conversations(spec, _ids(tokenizer, rng), rng)


def _check_fit(what: str, tokens: int, max_model_len: int | None) -> None:
    if max_model_len is not None and tokens > max_model_len:
        raise SettingError(
            f"{what} can make {tokens} tokens together, beyond max_model_len = {max_model_len}; "
            "lower one of them"
        )


def _ids(tokenizer: Tokenizer, rng: np.random.Generator) -> Callable[[int], tuple[int, ...]]:
    import numpy as np

    ordinary = np.asarray(tokenizer.ordinary)
    return lambda tokens: tuple(ordinary[rng.integers(len(ordinary), size=tokens)].tolist())


def _lengths(
    field: str, length: Length, column: str, trace: Sequence[TraceRequest] | None
) -> list[Drawn]:
    """The length, or those that the trace stands for, one for each of its requests."""
    if not isinstance(length, FromTrace):
        return [length]
    if not trace:
        raise SettingError(
            f"{field} is of kind 'trace', but no trace is replayed: give arrivals of kind 'trace', "
            "or another length"
        )
    counts = [getattr(request, column) for request in trace]
    if None in counts:
        raise SettingError(
            f"{field} is of kind 'trace', but request {counts.index(None) + 1} of the trace has no "
            f"{column}: cut the trace before it, or give another length"
        )
    return [Fixed.model_construct(tokens=tokens) for tokens in counts]


def _random_prompts(
    spec: RandomPrompts,
    tokenizer: Tokenizer,
    rng: np.random.Generator,
    trace: Sequence[TraceRequest] | None,
    max_model_len: int | None,
) -> Iterator[Prompt]:
    inputs = _lengths("RandomPrompts.input", spec.input, "prompt_tokens", trace)
    outputs = _lengths("RandomPrompts.output", spec.output, "output_tokens", trace)
    traced = isinstance(spec.input, FromTrace) or isinstance(spec.output, FromTrace)
    pairs = list(islice(zip(cycle(inputs), cycle(outputs)), max(len(inputs), len(outputs))))
    for number, (length, output) in enumerate(pairs, 1):
        where = f"request {number} of the trace: " if traced else ""
        if why := spec.no_room(length.low):
            raise SettingError(where + why)
        what = f"{where}RandomPrompts.input = {length.high} and output = {output.high}"
        _check_fit(what, length.high + output.high, max_model_len)
    return _random(spec, _ids(tokenizer, rng), rng, pairs if traced else cycle(pairs))


def _random(
    spec: RandomPrompts,
    ids: Callable[[int], tuple[int, ...]],
    rng: np.random.Generator,
    pairs: Iterable[tuple[Drawn, Drawn]],
) -> Iterator[Prompt]:
    prefixes = [ids(spec.shared_prefix_tokens) for _ in range(spec.prefixes)]
    for length, output in pairs:
        prefix = prefixes[int(rng.integers(len(prefixes)))]
        tokens, max_tokens = length.draw(rng), output.draw(rng)
        yield Prompt(prefix + ids(tokens - len(prefix)), tokens, max_tokens)


def _conversations(
    spec: Conversations, ids: Callable[[int], tuple[int, ...]], rng: np.random.Generator
) -> Iterator[Prompt]:
    system = ids(spec.system_tokens)
    for conversation in count():
        said = system
        for turn in range(spec.turns):
            said += ids(spec.input.draw(rng))
            max_tokens = spec.output.draw(rng)
            think_s = float(rng.exponential(spec.think_s)) if turn else 0.0
            yield Prompt(said, len(said), max_tokens, conversation, turn, think_s)
            said += ids(max_tokens)


class _Line(msgspec.Struct):
    """What is read of a line. A message keeps all of its fields, as long as they are texts."""

    prompt: str | None = None
    messages: list[dict[str, str]] | None = None
    output_tokens: Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)] | None = None


class _Read(NamedTuple):
    """A checked line; `output_tokens` is None where it does not say."""

    where: str
    content: str | tuple[dict[str, str], ...]
    prompt_tokens: int
    output_tokens: int | None


def _file_prompts(
    spec: FilePrompts,
    tokenizer: Tokenizer,
    rng: np.random.Generator,
    trace: Sequence[TraceRequest] | None,
    max_model_len: int | None,
) -> Iterator[Prompt]:
    lines = _read(spec, tokenizer)
    # Where there is no length every line has its own, and this one is never drawn.
    length = spec.output or Fixed(tokens=1)
    outputs = _lengths("FilePrompts.output", length, "output_tokens", trace)
    traced = isinstance(length, FromTrace)
    pairs = list(islice(zip(cycle(lines), cycle(outputs)), len(outputs if traced else lines)))
    for line, output in pairs:
        most = line.output_tokens or output.high
        what = f"{line.where}: the prompt = {line.prompt_tokens} and output_tokens = {most}"
        _check_fit(what, line.prompt_tokens + most, max_model_len)
    return (
        Prompt(line.content, line.prompt_tokens, line.output_tokens or output.draw(rng))
        for line, output in (pairs if traced else cycle(pairs))
    )


def _read(spec: FilePrompts, tokenizer: Tokenizer) -> list[_Read]:
    try:
        lines = Path(spec.path).read_bytes().splitlines()
    except OSError as problem:
        raise SettingError(
            f"FilePrompts.path = {spec.path!r} cannot be read: {problem.strerror}"
        ) from None
    decoder = msgspec.json.Decoder(_Line)
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{spec.path}, line {number}"
            try:
                found.append(_checked(where, decoder.decode(line), spec, tokenizer))
            except (msgspec.DecodeError, UnicodeDecodeError, SettingError) as problem:
                field = re.search(r"`\$\.(\w+)", str(problem))
                named = f", field {field[1]!r}" if field else ""
                raise SettingError(f"{where}{named}: {problem}") from None
    if not found:
        raise SettingError(f"FilePrompts.path = {spec.path!r}, line 1: the file has no prompt")
    return found


def _checked(where: str, line: _Line, spec: FilePrompts, tokenizer: Tokenizer) -> _Read:
    if (line.prompt is None) == (line.messages is None):
        raise SettingError("give either the field 'prompt' or the field 'messages'")
    if line.output_tokens is None and spec.output is None:
        raise SettingError(
            "the field 'output_tokens' is missing: add it, or give FilePrompts.output"
        )
    if line.messages is not None:
        for name in ("role", "content"):
            if not line.messages or any(name not in message for message in line.messages):
                raise SettingError(f"the field 'messages' has no message, or one without {name!r}")
        tokens = tokenizer.count_chat(line.messages)
        return _Read(where, tuple(line.messages), tokens, line.output_tokens)
    ids = tokenizer.encode(line.prompt or "")
    if not line.prompt or not ids:
        raise SettingError("the field 'prompt' is empty")
    return _Read(where, line.prompt, len(ids), line.output_tokens)
