"""Tokens of every format of answer. Ground truth: the counts that the events contain."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from vllm.entrypoints.anthropic.protocol import (
    AnthropicMessagesResponse,
    AnthropicStreamEvent,
    AnthropicUsage,
)
from vllm.entrypoints.openai.responses.protocol import ResponsesResponse
from vllm.entrypoints.pooling.embed.protocol import EmbeddingResponse, EmbeddingResponseData
from vllm.entrypoints.pooling.scoring.protocol import (
    RerankDocument,
    RerankResponse,
    RerankResult,
    RerankUsage,
    ScoreResponse,
    ScoreResponseData,
)
from vllm.entrypoints.serve.engine.protocol import UsageInfo

from serving.gateway.asgi import Message
from serving.gateway.bodies.body import Body
from serving.gateway.bodies.fields import Kind
from serving.gateway.metering import Meter

CHEAP = {"input_tokens": 0, "output_tokens": 0, "prompt_tokens": 0, "completion_tokens": 0}
PROMPT_CHARS = 400


def metered(
    kind: Kind,
    parts: list[str],
    *,
    streams: bool,
    status: int = 200,
    generated: tuple[int, int] = (0, 0),
) -> tuple[int, int]:
    """The tokens that a meter reads from an answer in these parts."""

    async def ignore(message: Message) -> None:
        pass

    async def run() -> tuple[int, int]:
        meter = Meter(ignore, Body({}, PROMPT_CHARS, kind), list)
        content_type = b"text/event-stream" if streams else b"application/json"
        headers = [(b"content-type", content_type)]
        await meter.send({"type": "http.response.start", "status": status, "headers": headers})
        for part in parts:
            body = part.encode()
            await meter.send({"type": "http.response.body", "body": body, "more_body": True})
        return meter.tokens(lambda: generated)

    return asyncio.run(run())


def responses_answer(usage: dict[str, Any] | None) -> dict[str, Any]:
    """A response of vLLM that repeats a tool in which a client hides counts of its own."""
    tool = {
        "type": "function",
        "name": "f",
        "strict": False,
        "parameters": {"properties": {"usage": CHEAP}, "usage": CHEAP},
    }
    fields: dict[str, Any] = dict.fromkeys(ResponsesResponse.model_fields)
    fields |= {"id": "resp_1", "tools": [tool], "usage": usage, "output": []}
    return fields


USAGE = {
    "input_tokens": 11,
    "input_tokens_details": {"cached_tokens": 8},
    "output_tokens": 22,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 33,
}


def sse(name: str, data: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"


class TestResponses:
    def test_a_whole_answer(self) -> None:
        assert metered("responses", [json.dumps(responses_answer(USAGE))], streams=False) == (
            11,
            22,
        )

    @pytest.mark.parametrize("final", ["completed", "incomplete", "failed"])
    def test_a_stream_ends_with_its_usage(self, final: str) -> None:
        parts = [
            sse("response.created", {"response": responses_answer(None)}),
            *[sse("response.output_text.delta", {"delta": 'event: "usage":{'})] * 3,
            sse(f"response.{final}", {"response": responses_answer(USAGE)}),
        ]
        assert metered("responses", parts, streams=True) == (11, 22)
        assert metered("responses", ["".join(parts)], streams=True) == (11, 22)

    def test_an_aborted_stream_is_counted_by_its_deltas(self) -> None:
        parts = [
            sse("response.created", {"response": responses_answer(None)}),
            *[sse("response.output_text.delta", {"delta": "a .delta b"})] * 5,
        ]
        assert metered("responses", parts, streams=True) == (PROMPT_CHARS // 4, 5)


def anthropic_events(deltas: int) -> list[str]:
    """A stream as vLLM's handler builds it, without its last events."""
    usage = AnthropicUsage(input_tokens=11, output_tokens=0)
    message = AnthropicMessagesResponse(id="1", content=[], model="m", usage=usage)
    start = AnthropicStreamEvent(type="message_start", message=message)
    block = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "a"}}
    delta = AnthropicStreamEvent.model_validate(block)
    return [
        sse(event.type, json.loads(event.model_dump_json(exclude_unset=True)))
        for event in (start, *[delta] * deltas)
    ]


class TestMessages:
    def test_a_whole_answer(self) -> None:
        call = {"type": "tool_use", "id": "1", "name": "f", "input": {"usage": CHEAP}}
        usage = AnthropicUsage(input_tokens=3, output_tokens=22, cache_read_input_tokens=8)
        answer = AnthropicMessagesResponse.model_validate(
            {"id": "1", "content": [call], "model": "m", "usage": usage}
        )
        body = json.dumps(answer.model_dump(exclude_none=True))
        assert metered("messages", [body], streams=False) == (11, 22)

    def test_a_stream_ends_with_its_usage(self) -> None:
        usage = AnthropicUsage(input_tokens=11, output_tokens=22)
        end = AnthropicStreamEvent(type="message_delta", usage=usage)
        last = sse("message_delta", json.loads(end.model_dump_json(exclude_unset=True)))
        stop = sse("message_stop", {"type": "message_stop"})
        assert metered("messages", [*anthropic_events(3), last, stop], streams=True) == (11, 22)

    def test_an_aborted_stream_is_counted_by_its_deltas(self) -> None:
        counted = metered("messages", anthropic_events(7), streams=True)
        assert counted == (PROMPT_CHARS // 4, 7)

    def test_a_count_of_tokens_costs_no_output(self) -> None:
        assert metered("count_tokens", ['{"input_tokens":17}'], streams=False) == (17, 0)


class TestPooling:
    usage = UsageInfo(prompt_tokens=13, total_tokens=13)

    def test_embeddings(self) -> None:
        data = [EmbeddingResponseData(index=n, embedding=[0.5] * 1000) for n in range(4)]
        answer = EmbeddingResponse(model="m", data=data, usage=self.usage).model_dump_json()
        parts = [answer[start : start + 3000] for start in range(0, len(answer), 3000)]
        assert metered("embedding", parts, streams=False) == (13, 0)

    def test_scores(self) -> None:
        data = [ScoreResponseData(index=n, score=0.5) for n in range(100)]
        answer = ScoreResponse(model="m", data=data, usage=self.usage).model_dump_json()
        assert metered("score", [answer], streams=False) == (13, 0)

    def test_ranks_have_their_usage_before_the_documents(self) -> None:
        usage = RerankUsage(prompt_tokens=13, total_tokens=13)
        hidden = '"usage": {"prompt_tokens": 0}' * 500
        document = RerankDocument(text=hidden)
        results = [RerankResult(index=0, document=document, relevance_score=1)] * 3
        answer = RerankResponse(id="1", model="m", usage=usage, results=results).model_dump_json()
        assert metered("rerank", [answer], streams=False) == (13, 0)

    def test_an_answer_without_usage_is_counted_by_characters(self) -> None:
        assert metered("embedding", ["\x00" * 5000], streams=False) == (PROMPT_CHARS // 4, 0)


@pytest.mark.parametrize("kind", ["responses", "messages", "embedding", "rerank", "count_tokens"])
def test_an_error_costs_nothing(kind: Kind) -> None:
    body = json.dumps({"error": {}, "usage": {"prompt_tokens": 5}, "input_tokens": 5})
    assert metered(kind, [body], streams=False, status=400) == (0, 0)


class TestAnswersThatEndEarly:
    """The client disconnects; the engine had read 90 tokens and generated 30."""

    def test_a_whole_answer_is_charged_by_the_engines_count(self) -> None:
        assert metered("chat", [], streams=False, generated=(90, 30)) == (90, 30)

    def test_a_stream_is_charged_by_the_engines_count_rather_than_its_events(self) -> None:
        parts = ["data: {}\n\n"] * 4
        assert metered("chat", parts, streams=True, generated=(90, 30)) == (90, 30)
        assert metered("chat", parts, streams=True) == (PROMPT_CHARS // 4, 4)

    def test_a_complete_answer_is_charged_by_its_usage(self) -> None:
        usage = json.dumps({"usage": {"prompt_tokens": 5, "completion_tokens": 6}})
        assert metered("chat", [usage], streams=False, generated=(90, 30)) == (5, 6)

    def test_a_refused_request_costs_nothing(self) -> None:
        assert metered("chat", [], streams=False, status=400, generated=(90, 30)) == (0, 0)
