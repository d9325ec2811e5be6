"""Generate the prompts of a trace: its own texts, or blocks of tokens by hash id.

The tokens of a block depend on its id and the seed alone, so that two prompts share exactly the
blocks whose ids they share. They are computed by a counter-based generator, without a table of
blocks: the mixing function of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom
number generators", 2014) of seed, id and position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import SettingError
from workbench.workload.prompt import Prompt, ToolPrompt
from workbench.workload.prompts import FromTrace, TracePrompts

if TYPE_CHECKING:
    from workbench.workload.tokenizer import Tokenizer
    from workbench.workload.trace_request import TraceRequest

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)

Words = np.ndarray[Any, np.dtype[np.uint64]]


def _mixed(words: Words) -> Words:
    words = (words ^ (words >> np.uint64(30))) * _MIX_1
    words = (words ^ (words >> np.uint64(27))) * _MIX_2
    return words ^ (words >> np.uint64(31))


def block_tokens(
    hash_ids: Sequence[int], block_size: int, vocabulary: Sequence[int], seed: int
) -> tuple[int, ...]:
    """Return the tokens of blocks, one after another.

    Args:
        hash_ids: The id of each block.
        block_size: Tokens per block.
        vocabulary: The token ids to choose from.
        seed: Another seed gives other tokens.
    """
    ids = np.array([hash_id & 0xFFFFFFFFFFFFFFFF for hash_id in hash_ids], dtype=np.uint64)
    start = _mixed(ids * _GAMMA + np.uint64(seed))
    position = np.arange(1, block_size + 1, dtype=np.uint64) * _GAMMA
    words = _mixed(start[:, None] + position[None, :])
    choices = np.asarray(vocabulary)
    return tuple(choices[words % np.uint64(len(choices))].ravel().tolist())


def trace_prompts(
    spec: TracePrompts,
    tokenizer: Tokenizer,
    rng: np.random.Generator,
    trace: Sequence[TraceRequest] | None,
    block_size: int | None,
    draw_tokens: Callable[[int], tuple[int, ...]],
) -> Iterator[Prompt]:
    """Return the prompts of the requests, each followed by the later turns of its session.

    Raises:
        SettingError: There is no trace, or the block size of its hash ids is unknown.
    """
    if not trace:
        raise SettingError(
            "prompts of kind 'trace' need a trace: give arrivals of kind 'trace', or other prompts"
        )
    if block_size is None and any(request.hash_ids for request in trace):
        raise SettingError(
            "the block size of the trace's hash_ids is unknown: give TraceReplay.block_size"
        )
    writer = _Writer(spec, tokenizer, rng, block_size or 1, draw_tokens)
    return writer.prompts(trace)


class _Writer:
    """Writes the prompts of one load."""

    def __init__(
        self,
        spec: TracePrompts,
        tokenizer: Tokenizer,
        rng: np.random.Generator,
        block_size: int,
        draw_tokens: Callable[[int], tuple[int, ...]],
    ) -> None:
        self._output, self._tokenizer, self._rng = spec.output, tokenizer, rng
        self._block_size, self._draw = block_size, draw_tokens
        self._seed = int(rng.integers(2**63))

    def prompts(self, trace: Sequence[TraceRequest]) -> Iterator[Prompt]:
        for number, request in enumerate(trace):
            yield from self._session(number, request)

    def _session(self, number: int, first: TraceRequest) -> Iterator[Prompt]:
        history: tuple[int, ...] = ()
        for turn, request in enumerate((first, *first.later)):
            output = self._output_tokens(request)
            place = (number if first.later else None, turn, request.delay_s)
            if isinstance(request.content, tuple):
                fields = (request.content, request.prompt_tokens or 0, output, *place)
                yield ToolPrompt(*fields, request.tools) if request.tools else Prompt(*fields)
                continue
            own = self._own_tokens(request)
            content: str | tuple[int, ...] = history + own
            if (
                isinstance(request.content, str)
                and not history
                and len(own) == len(self._tokenizer.encode(request.content))
            ):
                content = request.content
            yield Prompt(content, len(history) + len(own), output, *place)
            history += own
            if first.later:
                history += self._draw(output)

    def _own_tokens(self, request: TraceRequest) -> tuple[int, ...]:
        tokens = request.prompt_tokens or 0
        if isinstance(request.content, str):
            return tuple(self._tokenizer.encode(request.content)[:tokens])
        if not request.hash_ids:
            return self._draw(tokens)
        ids = request.hash_ids[: -(-tokens // self._block_size)]
        blocks = block_tokens(ids, self._block_size, self._tokenizer.regular_token_ids, self._seed)[
            :tokens
        ]
        return blocks + self._draw(tokens - len(blocks))

    def _output_tokens(self, request: TraceRequest) -> int:
        if isinstance(self._output, FromTrace):
            return request.output_tokens or 1
        return self._output.draw(self._rng)
