"""A streamed answer, parsed after it has ended: its token events, its usage, and how it ended.

A token event is one with a non-empty `choices` that carries what the model generated, whether or
not its text is empty (a token may complete no character). The chunk that only opens a chat answer
with its role is no token: vLLM sends it in the same instant as the first token, so TTFT is that of
`vllm bench serve`; other servers send it before they have computed anything.
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


@dataclass(slots=True)
class Answer:
    """What the events of one answer say; times are of the read that completed each event."""

    token_times: list[float] = field(default_factory=list)
    last_event_s: float | None = None
    usage: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] | None = None
    error: str | None = None
    garbled: bool = False
    done: bool = False
    stages: Mapping[str, float | None] | None = None


def parse(reads: Sequence[tuple[float, bytes]]) -> Answer:
    """What `reads` say: each the bytes of one network read, and the time when it came."""
    answer, read = Answer(), 0
    ends = list(itertools.accumulate(len(data) for _, data in reads))
    whole = b"".join(data for _, data in reads)
    for event in _EVENT.finditer(whole):
        while ends[read] < event.end():
            read += 1
        if event[1] == b"[DONE]":
            answer.done = True
            break
        try:
            _take(answer, pydantic_core.from_json(event[1]), reads[read][0])
        except (ValueError, LookupError, AttributeError, TypeError):
            answer.garbled = True
    answer.stages = _told(whole)
    return answer


def _told(whole: bytes) -> Mapping[str, float | None] | None:
    """The stages that a comment near the end tells; an answer's text never begins such a line."""
    comment = _STAGES.search(whole, max(0, len(whole) - 4096))
    try:
        told = pydantic_core.from_json(comment[1]) if comment else None
    except ValueError:
        return None
    if not isinstance(told, dict):
        return None
    return told if all(isinstance(ms, int | float | None) for ms in told.values()) else None


def _take(answer: Answer, event: Mapping[str, Any], at_s: float) -> None:
    answer.last_event_s = at_s
    problem = event.get("error") or (event if event.get("object") == "error" else None)
    if problem:
        detail = problem if isinstance(problem, Mapping) else {"message": problem}
        kind = detail.get("type") or detail.get("code") or "error"
        answer.error = answer.error or f"stream: {kind}: {detail.get('message')}"
    elif (choices := event.get("choices")) and _is_token(choices[0]):
        answer.token_times.append(at_s)
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


def outcome(answer: Answer, failure: BaseException | None) -> tuple[Status, str | None]:
    """The server's own word first; a garbled event last, as a cut stream ends in one too."""
    if isinstance(failure, asyncio.CancelledError) and not answer.done:
        return classify_failure(failure)
    if answer.error is not None:
        return "error", answer.error
    if failure is not None and not answer.done:
        return classify_failure(failure)
    if answer.garbled:
        return "error", "stream: an event is not a completion chunk"
    return ("ok", None) if answer.done else ("error", "stream: ended without [DONE]")


def stages(answer: Answer, header: str | None) -> dict[str, float | None] | None:
    """The server's stages: what its comment says, else its `Server-Timing` and vLLM's `metrics`.

    None where it said nothing of the kind.
    """
    if answer.stages is not None:
        return dict(answer.stages)
    found = StageTimings()
    found.read_header(header or "")
    if answer.metrics:
        found.set_engine_metrics(answer.metrics)
    ms = {name: None if value is None else round(value, 3) for name, value in found.ms.items()}
    return ms if any(value is not None for value in ms.values()) else None
