"""Guarded streams of each format. Ground truth: vLLM's own emitters and the clients' own types."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterable, Iterator
from functools import cache
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from anthropic.types import RawMessageStreamEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from openai._streaming import SSEDecoder
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter
from support.email_guard import CHAT, EMAIL, GUARD, blocks_emails

from serving.gateway.asgi import error_body
from serving.gateway.stages import StageTimings
from serving.guardrail.findings import FindingCounts
from serving.guardrail.guard import BlockedError, Guard
from serving.guardrail.stream import GuardedStream, format_error

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

RESPONSES, MESSAGES, COMPLETIONS = "/v1/responses", "/v1/messages", "/v1/completions"
TEXT = f"Write to {EMAIL} for more about it, or not at all."
SAFE = TEXT.replace(EMAIL, "<EMAIL_ADDRESS>")
ARGUMENTS = json.dumps({"to": EMAIL, "copies": 2})
SAFE_ARGUMENTS = ARGUMENTS.replace(EMAIL, "<EMAIL_ADDRESS>")


def pieces(text: str, size: int = 7) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def responses_events(deltas: Iterable[Any]) -> Iterator[Any]:
    """Yield the events that vLLM emits for the deltas of a model."""
    from vllm.entrypoints.openai.responses.streaming_events import SimpleStreamingEventProcessor

    processor = SimpleStreamingEventProcessor()
    for delta in deltas:
        state, tool_call = processor.resolve_target_state(delta)
        if processor.needs_transition(state, tool_call):
            yield from processor.close_current()
            yield from processor.open(state, tool_call)
        yield from processor.emit_delta(delta, SimpleNamespace())
    yield from processor.close_current()


def model_deltas(size: int = 7) -> list[Any]:
    """Return a model's reasoning, answer and tool call."""
    from vllm.entrypoints.generate.base.protocol import (
        DeltaFunctionCall,
        DeltaMessage,
        DeltaToolCall,
    )

    def call(**fields: Any) -> Any:
        function = DeltaFunctionCall(**fields)
        return DeltaMessage(tool_calls=[DeltaToolCall(index=0, id="t", function=function)])

    return [
        *(DeltaMessage(reasoning=piece) for piece in pieces(TEXT, size)),
        *(DeltaMessage(content=piece) for piece in pieces(TEXT, size)),
        call(name="f", arguments=""),
        *(call(arguments=piece) for piece in pieces(ARGUMENTS, size)),
    ]


def completed(events: list[Any]) -> dict[str, Any]:
    """Return the event at the end of a response, which repeats its whole output."""
    items = [
        event.item.model_dump(mode="json")
        for event in events
        if event.type == "response.output_item.done"
    ]
    return {"type": "response.completed", "sequence_number": -1, "response": response(items)}


def response(output: list[Any]) -> dict[str, Any]:
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": "m",
        "status": "completed" if output else "in_progress",
        "instructions": f"Mention {EMAIL}",  # the client's own, checked with the request
        "output": output,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }


def responses_packets(size: int = 7) -> list[str]:
    events = list(responses_events(model_deltas(size)))
    created = {"type": "response.created", "sequence_number": -1, "response": response([])}
    dumped = [created, *(event.model_dump(mode="json") for event in events), completed(events)]
    return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in dumped]


def messages_packets(size: int = 7) -> list[str]:
    """Return what vLLM's converter makes of the chunks of a chat completion."""
    from vllm.entrypoints.anthropic.serving import AnthropicServingMessages

    async def chunks() -> AsyncIterator[str]:
        head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}

        def chunk(delta: Any, finish: str | None = None) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            return f"data: {json.dumps(head | {'choices': [choice]})}\n\n"

        yield chunk({"role": "assistant", "content": ""})
        for delta in model_deltas(size):
            fields = delta.model_dump(mode="json", exclude_none=True)
            for call in fields.get("tool_calls", ()):
                if not call["function"].get("name"):
                    call.pop("id", None)
            yield chunk(fields)
        yield chunk({}, "tool_calls")
        usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
        yield f"data: {json.dumps(head | {'choices': [], 'usage': usage})}\n\n"
        yield "data: [DONE]\n\n"

    serving: Any = SimpleNamespace(stop_reason_map={"tool_calls": "tool_use"})

    async def collect() -> list[str]:
        converted = AnthropicServingMessages.message_stream_converter(serving, chunks())
        return [packet async for packet in converted]

    return asyncio.run(collect())


def rewritten(packets: list[str], path: str, guard: Guard = GUARD) -> tuple[str, FindingCounts]:
    counts = FindingCounts()

    async def source() -> AsyncIterator[str]:
        for packet in packets:
            yield packet

    async def run() -> str:
        stream = GuardedStream(guard, path, StageTimings(), counts)
        return "".join([packet async for packet in stream.rewrite(source())])

    return asyncio.run(run()), counts


def events_of(raw: str) -> list[tuple[str | None, Any]]:
    """Return the names and data that OpenAI's own decoder reads."""
    decoder = SSEDecoder()
    return [(event.event, event.json()) for event in decoder.iter_bytes(iter([raw.encode()]))]


class TestResponses:
    def test_every_event_that_repeats_the_text_is_redacted(self) -> None:
        packets = responses_packets()
        assert any(EMAIL in packet for packet in packets)
        raw, counts = rewritten(packets, RESPONSES)
        events = events_of(raw)
        assert all(name == data["type"] for name, data in events)
        assert EMAIL not in json.dumps(
            [e for _, e in events if e["type"] != "response.created"]
        ).replace(f"Mention {EMAIL}", "")
        by_type: dict[str, list[Any]] = {}
        for _, data in events:
            by_type.setdefault(data["type"], []).append(data)
        for kind, expected in (
            ("response.output_text", SAFE),
            ("response.reasoning_text", SAFE),
            ("response.function_call_arguments", SAFE_ARGUMENTS),
        ):
            assert "".join(data["delta"] for data in by_type[f"{kind}.delta"]) == expected
            done = by_type[f"{kind}.done"][0]
            assert done.get("text", done.get("arguments")) == expected
        assert by_type["response.content_part.done"][0]["part"]["text"] == SAFE
        assert by_type["response.reasoning_part.done"][0]["part"]["text"] == SAFE
        reasoning, message, call = (data["item"] for data in by_type["response.output_item.done"])
        assert reasoning["content"][0]["text"] == message["content"][0]["text"] == SAFE
        assert call["arguments"] == SAFE_ARGUMENTS
        last = by_type["response.completed"][0]["response"]
        assert [item["id"] for item in last["output"]] == [
            item["id"] for item in (reasoning, message, call)
        ]
        assert SAFE_ARGUMENTS in json.dumps(last).replace('\\"', '"')
        assert counts == {("EMAIL_ADDRESS", "redact"): 3}

    def test_the_openai_package_reads_them_in_order(self) -> None:
        raw, _ = rewritten(responses_packets(), RESPONSES)
        adapter: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
        numbers = []
        for _, data in events_of(raw):
            if "reasoning_part" not in data["type"]:  # of vLLM only
                adapter.validate_python(data)
            numbers.append(data["sequence_number"])
        assert numbers == list(range(len(numbers)))

    def test_a_text_comes_before_the_event_that_ends_it(self) -> None:
        raw, _ = rewritten(responses_packets(), RESPONSES)
        kinds = [data["type"] for _, data in events_of(raw)]
        for kind in ("output_text", "reasoning_text", "function_call_arguments"):
            deltas = [at for at, name in enumerate(kinds) if name == f"response.{kind}.delta"]
            assert max(deltas) < kinds.index(f"response.{kind}.done")

    def test_unknown_events_are_checked(self) -> None:
        unheard = {"type": "response.unheard_of", "sequence_number": 1, "note": {"x": [EMAIL]}}
        delta = {"type": "response.unheard_of.delta", "item_id": "1", "output_index": 0}
        packets = [f"event: {unheard['type']}\ndata: {json.dumps(unheard)}\n\n"]
        packets += [
            f"event: {delta['type']}\ndata: {json.dumps(delta | {'delta': piece})}\n\n"
            for piece in pieces(TEXT)
        ]
        raw, _ = rewritten(packets, RESPONSES)
        assert EMAIL not in raw
        assert "".join(data.get("delta", "") for _, data in events_of(raw)) == SAFE


class TestMessages:
    def test_every_delta_is_redacted(self) -> None:
        packets = messages_packets()
        raw, counts = rewritten(packets, MESSAGES)
        events = events_of(raw)
        assert all(name == data["type"] for name, data in events)
        assert EMAIL not in raw
        texts: dict[tuple[int, str], str] = {}
        for _, data in events:
            if data["type"] == "content_block_delta":
                delta = data["delta"]
                kind = delta["type"]
                name = {"text_delta": "text", "thinking_delta": "thinking"}.get(
                    kind, "partial_json"
                )
                key = data["index"], kind
                texts[key] = texts.get(key, "") + delta.get(name, "")
        assert texts.pop((0, "signature_delta")) == ""
        assert texts == {
            (0, "thinking_delta"): SAFE,
            (1, "text_delta"): SAFE,
            (2, "input_json_delta"): SAFE_ARGUMENTS,
        }
        assert counts == {("EMAIL_ADDRESS", "redact"): 3}

    def test_blocks_open_and_close_around_their_text(self) -> None:
        before = [
            (data["type"], data.get("index")) for _, data in events_of("".join(messages_packets()))
        ]
        raw, _ = rewritten(messages_packets(), MESSAGES)
        adapter: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
        after = []
        for _, data in events_of(raw):
            if data.get("content_block", {}).get("type") != "thinking":  # vLLM gives no signature
                adapter.validate_python(data)
            after.append((data["type"], data.get("index")))

        def once(events: list[Any]) -> list[Any]:
            return [b for a, b in pairwise([None, *events]) if a != b]

        assert once(after) == once(before)


def chat_packets() -> list[str]:
    def chunk(delta: Any, finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return f"data: {json.dumps({'id': 'c', 'model': 'm', 'choices': [choice]})}\n\n"

    call = {"index": 0, "id": "t", "type": "function", "function": {"name": "f", "arguments": ""}}
    return [
        chunk({"role": "assistant", "content": ""}),
        *(chunk({"reasoning": piece}) for piece in pieces(TEXT)),
        *(chunk({"content": piece}) for piece in pieces(TEXT)),
        chunk({"tool_calls": [call]}),
        *(
            chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
            for piece in pieces(ARGUMENTS)
        ),
        chunk({}, "tool_calls"),
    ]


def completion_packets() -> list[str]:
    choices = [{"index": 0, "text": piece, "finish_reason": None} for piece in pieces(TEXT)]
    choices.append({"index": 0, "text": "", "finish_reason": "stop"})
    return [f"data: {json.dumps({'id': 'c', 'choices': [choice]})}\n\n" for choice in choices]


def released(raw: str) -> dict[str, str]:
    """Return the texts that a stream of any format carries, by their place."""
    texts: dict[str, str] = {}

    def add(place: str, text: str | None) -> None:
        texts[place] = texts.get(place, "") + (text or "")

    for _, data in events_of(raw):
        for choice in data.get("choices", ()):
            delta = choice.get("delta", {})
            add("text", choice.get("text"))
            add("content", delta.get("content"))
            add("reasoning", delta.get("reasoning"))
            for call in delta.get("tool_calls", ()):
                add("arguments", call["function"].get("arguments"))
        if isinstance(data.get("delta"), str):
            add(data["type"], data["delta"])
        elif isinstance(data.get("delta"), dict):
            for name in ("text", "thinking", "partial_json"):
                add(name, data["delta"].get(name))
    return texts


class TestPartitions:
    """However a stream is packed, the same text leaves."""

    @pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES, MESSAGES])
    @settings(max_examples=25, deadline=None)
    @given(data=st.data())
    def test_packets(self, path: str, data: st.DataObject) -> None:
        packets = PACKETS[path]()
        cuts = data.draw(st.sets(st.integers(1, len(packets) - 1)))
        bounds = [0, *sorted(cuts), len(packets)]
        packed = ["".join(packets[start:end]) for start, end in pairwise(bounds)]
        raw, _ = rewritten(packed, path)
        texts = released(raw)
        assert EMAIL not in raw.replace(f"Mention {EMAIL}", "")
        assert texts == released(rewritten(packets, path)[0])
        assert SAFE in texts.values()

    @pytest.mark.parametrize("size", [1, 2, 3, 20, 500])
    @pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
    def test_deltas(self, path: str, size: int) -> None:
        packets = responses_packets(size) if path == RESPONSES else messages_packets(size)
        texts = released(rewritten(packets, path)[0])
        assert sorted(text for text in texts.values() if text) == sorted(
            [SAFE, SAFE, SAFE_ARGUMENTS]
        )


PACKETS = {
    CHAT: cache(chat_packets),
    COMPLETIONS: cache(completion_packets),
    RESPONSES: cache(responses_packets),
    MESSAGES: cache(messages_packets),
}


class TestBlocks:
    @pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES, MESSAGES])
    def test_a_blocked_stream_ends_with_an_error_of_its_route(self, path: str) -> None:
        guard = Guard(GUARD.spec, blocks_emails)
        with pytest.raises(BlockedError) as caught:
            rewritten(PACKETS[path](), path, guard)
        body = error_body(str(caught.value), caught.value.kind, caught.value.code)
        ((name, data),) = events_of(format_error(path, body, 7))
        assert EMAIL not in json.dumps(data)
        if path == MESSAGES:
            assert name == "error"
            assert data["type"] == "error"
            assert data["error"] == {"type": "content_blocked", "message": str(caught.value)}
        elif path == RESPONSES:
            assert name == "error"
            TypeAdapter(ResponseStreamEvent).validate_python(data)
            assert (data["code"], data["sequence_number"]) == ("content_blocked", 7)
        else:
            assert name is None
            assert data == body

    def test_a_guardrail_for_prompts_leaves_the_stream_alone(self) -> None:
        spec = GUARD.spec.model_copy(update={"sides": ("prompt",)})
        packets = PACKETS[RESPONSES]()
        raw, counts = rewritten(packets, RESPONSES, Guard(spec, blocks_emails))
        assert raw == "".join(packets)
        assert not counts


class TestWholeAnswers:
    @pytest.mark.parametrize(
        ("path", "answer"),
        [
            (CHAT, {"choices": [{"index": 0, "message": {"role": "assistant", "content": EMAIL}}]}),
            (CHAT, {"choices": [{"message": {"reasoning": EMAIL}}]}),
            (CHAT, {"choices": [{"message": {"refusal": EMAIL}}]}),
            (CHAT, {"choices": [{"message": {"audio": {"transcript": EMAIL}}}]}),
            (CHAT, {"choices": [{"message": {"tool_calls": [{"function": {"name": EMAIL}}]}}]}),
            (COMPLETIONS, {"choices": [{"index": 0, "text": EMAIL}]}),
            (RESPONSES, response([{"type": "message", "content": [{"text": EMAIL}]}])),
            (RESPONSES, response([{"type": "reasoning", "summary": [{"text": EMAIL}]}])),
            (RESPONSES, response([{"type": "function_call", "arguments": f'{{"{EMAIL}": 1}}'}])),
            (MESSAGES, {"content": [{"type": "text", "text": EMAIL}]}),
            (MESSAGES, {"content": [{"type": "thinking", "thinking": EMAIL}]}),
            (MESSAGES, {"content": [{"type": "tool_use", "input": {"to": [EMAIL]}}]}),
            (MESSAGES, {"content": [{"type": "tool_use", "input": {EMAIL: {EMAIL: 1}}}]}),
            ("/rerank", {"results": [{"index": 0, "document": {"text": EMAIL}}]}),
            ("/detokenize", {"prompt": EMAIL}),
        ],
    )
    def test_texts_are_redacted_in_place(self, path: str, answer: dict[str, Any]) -> None:
        instructions = answer.pop("instructions", None)
        expected = json.loads(json.dumps(answer).replace(EMAIL, "<EMAIL_ADDRESS>"))
        if instructions:
            answer["instructions"] = expected["instructions"] = instructions
        counts = FindingCounts()
        asyncio.run(GUARD.check_answer(path, answer, counts))
        assert answer == expected
        assert counts.total() >= 1

    def test_numbers_and_usage_are_left_alone(self) -> None:
        answer = {"data": [{"index": 0, "embedding": [0.1]}], "usage": {"total_tokens": 1}}
        expected = json.loads(json.dumps(answer))
        asyncio.run(GUARD.check_answer("/v1/embeddings", answer, FindingCounts()))
        assert answer == expected
