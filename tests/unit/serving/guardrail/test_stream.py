"""Guarded streams. Ground truth: the events that OpenAI's own decoder reads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from openai._streaming import SSEDecoder
from support.email_guard import CHAT, EMAIL, GUARD, blocks_emails

from serving.gateway.stages import StageTimings
from serving.guardrail.findings import FindingCounts
from serving.guardrail.guard import BlockedError, Guard
from serving.guardrail.stream import GuardedStream


def chunk(delta: dict[str, Any], finish: str | None = None, index: int = 0) -> str:
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return "data: " + json.dumps({"id": "c", "model": "m", "choices": [choice]}) + "\n\n"


def text_chunk(text: str, finish: str | None = None) -> str:
    choice = {"index": 0, "text": text, "finish_reason": finish}
    return "data: " + json.dumps({"id": "c", "model": "m", "choices": [choice]}) + "\n\n"


USAGE = 'data: {"choices":[],"usage":{"completion_tokens":3}}\n\n'


def rewritten(
    *packets: str,
    guard: Guard = GUARD,
    counts: FindingCounts | None = None,
    path: str = CHAT,
) -> list[Any]:
    """Return the events that OpenAI's own decoder reads."""

    async def source() -> AsyncIterator[str]:
        for packet in packets:
            yield packet

    async def run() -> list[str]:
        stream = GuardedStream(
            guard, path, StageTimings(), counts if counts is not None else FindingCounts()
        )
        return [packet async for packet in stream.rewrite(source())]

    raw = "".join(asyncio.run(run())).encode()
    return [event.json() for event in SSEDecoder().iter_bytes(iter([raw]))]


def content(events: Sequence[Any], name: str = "content", index: int = 0) -> str:
    choices = [c for e in events for c in e["choices"] if c["index"] == index]
    return "".join(c["delta"].get(name) or "" for c in choices)


class TestStreams:
    def test_an_address_split_over_three_chunks_is_found(self) -> None:
        counts = FindingCounts()
        events = rewritten(
            chunk({"role": "assistant", "content": ""}),
            chunk({"content": "Write to jane.r"}),
            chunk({"content": "oe@exam"}),
            chunk({"content": "ple.com for more about it, whenever you like."}),
            chunk({}, "stop"),
            USAGE,
            counts=counts,
        )
        assert content(events) == "Write to <EMAIL_ADDRESS> for more about it, whenever you like."
        assert "jane" not in json.dumps(events)
        assert events[0]["choices"][0]["delta"]["role"] == "assistant"
        assert events[-2]["choices"][0]["finish_reason"] == "stop"
        assert events[-1]["usage"] == {"completion_tokens": 3}
        assert counts == {("EMAIL_ADDRESS", "redact"): 1}

    def test_text_precedes_the_finish_reason_of_its_choice(self) -> None:
        events = rewritten(chunk({"content": "hi"}), chunk({"content": "!"}, "stop"), USAGE)
        assert [e["choices"][0]["finish_reason"] for e in events[:-1]] == [None, "stop"]
        assert content(events) == "hi!"

    def test_choices_and_texts_are_kept_apart(self) -> None:
        events = rewritten(
            chunk({"content": "a jane.roe@"}),
            chunk({"content": "b jane.roe@"}, index=1),
            chunk({"content": "example.com"}, "stop"),
            chunk({"content": "elsewhere", "reasoning": EMAIL}, "stop", index=1),
        )
        assert content(events) == "a <EMAIL_ADDRESS>"
        assert content(events, index=1) == "b jane.roe@elsewhere"
        assert content(events, "reasoning", index=1) == "<EMAIL_ADDRESS>"

    def test_completions(self) -> None:
        events = rewritten(text_chunk("see jane.roe@"), text_chunk("example.com", "length"))
        assert "".join(e["choices"][0]["text"] for e in events) == "see <EMAIL_ADDRESS>"
        assert events[-1]["choices"][0]["finish_reason"] == "length"

    def test_tool_call_arguments(self) -> None:
        call = {"index": 0, "id": "t", "type": "function", "function": {"name": "f"}}
        more = [
            {"index": 0, "function": {"arguments": part}}
            for part in ('{"to": "jane.roe', '@example.com"}')
        ]
        events = rewritten(
            chunk({"role": "assistant", "tool_calls": [call]}),
            chunk({"tool_calls": [more[0]]}),
            chunk({"tool_calls": [more[1]]}),
            chunk({}, "tool_calls"),
        )
        calls = [c for e in events for c in e["choices"][0]["delta"].get("tool_calls", ())]
        assert calls[0]["function"]["name"] == "f"
        arguments = "".join(c["function"].get("arguments") or "" for c in calls)
        assert arguments == '{"to": "<EMAIL_ADDRESS>"}'

    def test_blocking_ends_the_stream_and_names_only_the_type(self) -> None:
        guard = Guard(GUARD.spec, blocks_emails)
        with pytest.raises(BlockedError, match="answer: it contains EMAIL_ADDRESS") as caught:
            rewritten(chunk({"content": f"Write to {EMAIL}"}), chunk({}, "stop"), guard=guard)
        assert EMAIL not in str(caught.value)
        assert caught.value.code == "content_blocked"

    def test_engine_errors_pass(self) -> None:
        error = 'data: {"error":{"message":"x","type":"y","code":500}}\n\n'
        assert rewritten(error) == [{"error": {"message": "x", "type": "y", "code": 500}}]
