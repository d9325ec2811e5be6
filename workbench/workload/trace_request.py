"""The recorded requests of a trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from workbench.workload.trace_formats import Unit


class TraceRequest(msgspec.Struct, frozen=True, gc=False):
    """One recorded request: seconds since the start of the cut, and its lengths in tokens.

    A length is None where the trace does not give it: null, or the 0 that BurstGPT writes for a
    request that failed. The request counts as an arrival.

    Attributes:
        offset_s: Seconds since the start of the cut.
        prompt_tokens: Tokens of the prompt.
        output_tokens: Tokens of the answer.
        hash_ids: The ids of the blocks of the prompt; two equal ids are the same tokens.
        content: The prompt itself, as a text or the messages of a chat.
        tools: The tools of a chat.
        delay_s: Seconds between the answer before and this turn of a session.
        later: The turns of the session after this one.
    """

    offset_s: float
    prompt_tokens: int | None
    output_tokens: int | None
    hash_ids: tuple[int, ...] | None = None
    content: str | tuple[dict[str, Any], ...] | None = None
    tools: tuple[dict[str, Any], ...] | None = None
    delay_s: float = 0.0
    later: tuple[TraceRequest, ...] = ()


@dataclass(frozen=True, slots=True)
class Trace:
    """The requests of a trace in the order of their times, and what is notable about it.

    Attributes:
        requests: The requests of the cut.
        format: The name of the format.
        unit: The unit of its times.
        block_size: Tokens per hash id; None if unknown.
        out_of_order: Rows that were before an earlier row, and were sorted.
        images: Requests with images. Their prompts have as many tokens, but no image.
        batch_s: Seconds between batches, if the times are so coarse that requests share them.
        prefixes: Whether it has hash ids.
    """

    requests: list[TraceRequest]
    format: str
    unit: Unit
    block_size: int | None = None
    out_of_order: int = 0
    images: int = 0
    batch_s: float | None = None
    prefixes: bool = False
