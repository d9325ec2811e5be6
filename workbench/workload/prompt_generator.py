"""Generate seeded prompts with exact token counts. Pure, except that `FilePrompts` reads its file.

Random prompts and conversations are token ids for `/v1/completions`: the server would split a text
of random tokens differently, so its length would be a guess. Only regular tokens are drawn, so that
none of them ends a prompt or changes its structure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, cycle, islice
from typing import TYPE_CHECKING

from workbench.errors import SettingError
from workbench.workload.file_prompts import FileContext, file_prompts
from workbench.workload.prompt import Prompt, check_context
from workbench.workload.prompt_files import read_prompts
from workbench.workload.prompts import (
    Conversations,
    FilePrompts,
    Fixed,
    FromTrace,
    Length,
    LengthDistribution,
    PromptSet,
    RandomPrompts,
    TracePrompts,
)

if TYPE_CHECKING:
    import numpy as np

    from workbench.workload.tokenizer import Tokenizer
    from workbench.workload.trace_request import TraceRequest

    TokenSource = Callable[[int], tuple[int, ...]]


def generate_prompts(
    spec: PromptSet,
    tokenizer: Tokenizer,
    rng: np.random.Generator,
    *,
    trace: Sequence[TraceRequest] | None = None,
    block_size: int | None = None,
    max_model_len: int | None = None,
    left_out: Counter[str] | None = None,
) -> Iterator[Prompt]:
    """Yield prompts without end or, with a `FromTrace` length, one per request of `trace`.

    The same seed gives the same prompts. The turns of a conversation follow each other. Everything
    is checked, and a file is read, before this function returns.

    Args:
        spec: What to generate.
        tokenizer: The tokenizer of the model.
        rng: The source of randomness.
        trace: The requests of the replayed trace.
        block_size: Tokens per hash id of the trace.
        max_model_len: The context of the model, in tokens.
        left_out: Counts what is left out of a file, by reason.

    Raises:
        SettingError: A length can exceed `max_model_len` (prompt and answer together); a
            `FromTrace` length has no trace, or a trace without that count; a file is empty, cannot
            be read, or has an invalid line. The message names the field, or the line.
    """
    if isinstance(spec, FilePrompts):
        counts = Counter[str]() if left_out is None else left_out
        lines = read_prompts(spec, tokenizer, counts)
        traced = isinstance(spec.output, FromTrace)
        # Without `output` every line has its own length, and this one is never drawn.
        length = spec.output or Fixed(tokens=1)
        outputs = _lengths("FilePrompts.output", length, "output_tokens", trace)
        context = FileContext(spec, max_model_len, counts)
        return file_prompts(context, rng, lines, outputs, traced=traced)
    if isinstance(spec, TracePrompts):
        from workbench.workload.trace_prompts import trace_prompts

        draw_tokens = _token_source(tokenizer, rng)
        return trace_prompts(spec, tokenizer, rng, trace, block_size, draw_tokens)
    if isinstance(spec, RandomPrompts):
        return _random_prompts(spec, tokenizer, rng, trace, max_model_len)
    most = spec.system_tokens + spec.turns * (spec.input.high + spec.output.high)
    fields = f"Conversations.system_tokens, and input and output of turns = {spec.turns},"
    check_context(fields, most, max_model_len)
    return _conversations(spec, _token_source(tokenizer, rng), rng)


def _token_source(tokenizer: Tokenizer, rng: np.random.Generator) -> TokenSource:
    """Return a function that draws a given number of regular token ids."""
    import numpy as np

    ids = np.asarray(tokenizer.regular_token_ids)
    return lambda tokens: tuple(ids[rng.integers(len(ids), size=tokens)].tolist())


def _lengths(
    field: str, length: Length, column: str, trace: Sequence[TraceRequest] | None
) -> list[LengthDistribution]:
    """Return the length, or those of the trace, one per request."""
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
        try:
            spec.check_prefix(length.low)
        except ValueError as problem:
            raise SettingError(f"{where}{problem}") from None
        fields = f"{where}RandomPrompts.input = {length.high} and output = {output.high}"
        check_context(fields, length.high + output.high, max_model_len)
    return _random(spec, _token_source(tokenizer, rng), rng, pairs if traced else cycle(pairs))


def _random(
    spec: RandomPrompts,
    draw_tokens: TokenSource,
    rng: np.random.Generator,
    pairs: Iterable[tuple[LengthDistribution, LengthDistribution]],
) -> Iterator[Prompt]:
    prefixes = [draw_tokens(spec.shared_prefix_tokens) for _ in range(spec.prefixes)]
    for length, output in pairs:
        prefix = prefixes[int(rng.integers(len(prefixes)))]
        tokens, max_tokens = length.draw(rng), output.draw(rng)
        yield Prompt(prefix + draw_tokens(tokens - len(prefix)), tokens, max_tokens)


def _conversations(
    spec: Conversations, draw_tokens: TokenSource, rng: np.random.Generator
) -> Iterator[Prompt]:
    system = draw_tokens(spec.system_tokens)
    for conversation in count():
        history = system
        for turn in range(spec.turns):
            history += draw_tokens(spec.input.draw(rng))
            max_tokens = spec.output.draw(rng)
            think_s = float(rng.exponential(spec.think_s)) if turn else 0.0
            yield Prompt(history, len(history), max_tokens, conversation, turn, think_s)
            history += draw_tokens(max_tokens)
