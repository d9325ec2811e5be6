"""Parse a streamed answer after it has ended: its tokens, its usage, and how it ended.

A token event has a non-empty `choices` with something the model generated, even if its text is
empty (a token may complete no character). A first chat chunk that only gives the role is not a
token: vLLM sends it at the same instant as the first token, so TTFT equals that of `vllm bench
serve`; other servers send it before they have computed anything.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pydantic_core

from serving.gateway.stages import TIMING_COMMENT, StageTimings
from workbench.loadgen.outcome import classify_failure
from workbench.records import Status

_EVENT = re.compile(rb"^data:[ ]?([^\r\n]*)", re.MULTILINE)
_STAGES = re.compile(rb"^" + re.escape(TIMING_COMMENT.encode()) + rb"([^\r\n]*)", re.MULTILINE)
_EMPTY = (b"", b"{}", b"null")
"""Data of events without content, which some servers send to keep a connection open."""
_TAIL_BYTES = 4096
"""Where the comment with the stages is searched, from the end."""


@dataclass(slots=True)
class StreamedAnswer:
    """The content of an answer's events. Times are of the read that completed the event.

    `done` is whether `[DONE]` came, and `finished` whether the reason why the model stopped or the
    usage came.
    """

    token_times: list[float] = field(default_factory=list)
    last_event_s: float | None = None
    usage: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] | None = None
    error: str | None = None
    garbled: bool = False
    done: bool = False
    finished: bool = False
    empty_events: int = 0
    stages: Mapping[str, float | None] | None = None


def parse_answer(reads: Sequence[tuple[float, bytes]]) -> StreamedAnswer:
    """Parse network reads, each a time and bytes."""
    answer, read = StreamedAnswer(), 0
    ends = list(itertools.accumulate(len(data) for _, data in reads))
    content = b"".join(data for _, data in reads)
    for event in _EVENT.finditer(content):
        while ends[read] < event.end():
            read += 1
        data = event[1].strip()
        if data == b"[DONE]":
            answer.done = True
            break
        if data in _EMPTY:
            answer.empty_events += 1
            continue
        try:
            _add_event(answer, pydantic_core.from_json(data), reads[read][0])
        except (ValueError, LookupError, AttributeError, TypeError):
            answer.garbled = True
    answer.stages = _stages_comment(content)
    return answer


def _stages_comment(content: bytes) -> Mapping[str, float | None] | None:
    """Return the stages in a comment near the end. An answer's text never starts such a line."""
    comment = _STAGES.search(content, max(0, len(content) - _TAIL_BYTES))
    try:
        stages = pydantic_core.from_json(comment[1]) if comment else None
    except ValueError:
        return None
    if not isinstance(stages, dict):
        return None
    return stages if all(isinstance(ms, int | float | None) for ms in stages.values()) else None


def _add_event(answer: StreamedAnswer, event: Mapping[str, Any], at_s: float) -> None:
    answer.last_event_s = at_s
    problem = event.get("error") or (event if event.get("object") == "error" else None)
    if problem:
        detail = problem if isinstance(problem, Mapping) else {"message": problem}
        kind = detail.get("type") or detail.get("code") or "error"
        answer.error = answer.error or f"stream: {kind}: {detail.get('message')}"
    elif choices := event.get("choices"):
        if _is_token(choices[0]):
            answer.token_times.append(at_s)
        answer.finished |= choices[0].get("finish_reason") is not None
    answer.finished |= bool(event.get("usage"))
    answer.usage = event.get("usage") or answer.usage
    if metrics := event.get("metrics"):
        answer.metrics = metrics


def _is_token(choice: Mapping[str, Any]) -> bool:
    delta = choice.get("delta")
    if delta is None:
        return "text" in choice
    if "role" not in delta:
        return bool(delta)
    return any(value for name, value in delta.items() if name != "role")


def answer_status(
    answer: StreamedAnswer, failure: BaseException | None, proxy: str | None = None
) -> tuple[Status, str | None]:
    """Return the status of a request and its reason.

    The server's own error comes first, and a garbled event last, as a cut stream ends in one too.
    A stream that ends regularly but without `[DONE]` is complete if the model finished.
    """
    if isinstance(failure, asyncio.CancelledError) and not answer.done:
        return classify_failure(failure)
    if answer.error is not None:
        return "error", answer.error
    if failure is not None and not answer.done:
        return classify_failure(failure, proxy)
    if answer.garbled:
        return "error", "stream: an event is not a completion chunk"
    if answer.done or answer.finished:
        return "ok", None
    return "error", "stream: ended without [DONE] and without a finish_reason"


def answer_note(answer: StreamedAnswer) -> str | None:
    """Return what was irregular about a complete stream, or None."""
    notes = [
        "the stream ended without [DONE]" if not answer.done else "",
        "the stream had empty events" if answer.empty_events else "",
    ]
    return "; ".join(note for note in notes if note) or None


def cached_tokens(usage: Mapping[str, Any]) -> int | None:
    """Return the tokens of the prompt that were in the prefix cache; None if not reported."""
    details = usage.get("prompt_tokens_details")
    tokens = details.get("cached_tokens") if isinstance(details, Mapping) else None
    return tokens if isinstance(tokens, int) else None


def stage_times(answer: StreamedAnswer, header: str | None) -> dict[str, float | None] | None:
    """Return the milliseconds in each stage of the server's work.

    They come from the stream's comment, else from the `Server-Timing` header and vLLM's `metrics`.
    None if the server reported no stages.
    """
    if answer.stages is not None:
        return dict(answer.stages)
    timings = StageTimings()
    timings.read_header(header or "")
    if answer.metrics:
        timings.set_engine_metrics(answer.metrics)
    ms = {name: None if value is None else round(value, 3) for name, value in timings.ms.items()}
    return ms if any(value is not None for value in ms.values()) else None
