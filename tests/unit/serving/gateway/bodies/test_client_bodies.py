"""Bodies of real clients pass whole, and vLLM's own request classes accept what passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel, TypeAdapter
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.pooling.embed.protocol import EmbeddingRequest

from serving.gateway.bodies.body import Body
from serving.gateway.bodies.body_checks import check_body
from serving.spec.limits import Limits

TOOL = {
    "type": "function",
    "name": "weather",
    "description": "Weather at an image_url.",
    "parameters": {"type": "object", "properties": {"image_url": {"type": "string"}}},
}
SCHEMA = {"type": "object", "properties": {"a": {"type": ["string", "null"], "default": None}}}


class Answer(BaseModel):
    """A structured answer."""

    city: str | None = None


def sent(call: Callable[[Any], Any]) -> tuple[str, bytes]:
    """The path and the body that the OpenAI client sends for a call."""
    requests: list[httpx.Request] = []

    def record(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(400, json={})

    transport = httpx.MockTransport(record)
    with httpx.Client(transport=transport) as http:
        options: dict[str, Any] = {"http_client": http, "max_retries": 0}
        client = openai.OpenAI(base_url="http://x/v1", api_key="k", **options)
        with pytest.raises(openai.BadRequestError):
            call(client)
    return requests[0].url.path, requests[0].content


def checked(path: str, raw: bytes) -> Body:
    body = check_body(path, raw, Limits(unknown_fields="reject"))
    body.request_usage()
    return body


def messages() -> list[Any]:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    return [
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "b"},
    ]


CALLS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "chat": (
        ChatCompletionRequest,
        lambda client: client.chat.completions.create(
            model="m",
            messages=messages(),
            stream=True,
            stream_options={"include_usage": True},
            tools=[{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}],
            tool_choice="auto",
            modalities=["text"],
            metadata={"a": "b"},
            store=True,
            service_tier="auto",
            prompt_cache_key="a",
            safety_identifier="a",
            reasoning_effort="low",
            max_completion_tokens=16,
            extra_body={"top_k": 5.0, "chat_template_kwargs": {"enable_thinking": False}},
        ),
    ),
    "parse": (
        ChatCompletionRequest,
        lambda client: client.chat.completions.parse(
            model="m", messages=messages(), response_format=Answer, n=2
        ),
    ),
    "completion": (
        CompletionRequest,
        lambda client: client.completions.create(
            model="m", prompt=["a"] * 32, best_of=1, echo=True, logprobs=2, suffix=None
        ),
    ),
    "responses": (
        ResponsesRequest,
        lambda client: client.responses.create(
            model="m",
            input=[
                {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
                {"type": "function_call", "call_id": "1", "name": "weather", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "1", "output": "b"},
            ],
            instructions="b",
            tools=[TOOL],
            text={"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}},
            reasoning={"effort": "low", "summary": None},
            max_output_tokens=16,
            store=False,
            background=False,
            include=["reasoning.encrypted_content"],
            stream=True,
        ),
    ),
    "embeddings": (
        EmbeddingRequest,
        lambda client: client.embeddings.create(model="m", input=["a", "b"], user="u"),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_bodies_of_the_openai_client(name: str) -> None:
    request_class, call = CALLS[name]
    path, raw = sent(call)
    body = checked(path, raw)
    TypeAdapter(request_class).validate_json(body.encoded())


def test_a_schema_keeps_its_nulls() -> None:
    path, raw = sent(CALLS["responses"][1])
    schema = checked(path, raw).fields["text"]["format"]["schema"]
    assert schema == SCHEMA


def test_a_body_of_an_anthropic_client() -> None:
    block = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
    fields = {
        "model": "m",
        "max_tokens": 16.0,
        "system": [block],
        "messages": [{"role": "user", "content": [block]}],
        "tools": [{"name": "weather", "input_schema": SCHEMA}],
        "tool_choice": {"type": "auto"},
        "stop_sequences": ["x"],
        "metadata": {"user_id": "u"},
        "temperature": None,
        "stream": True,
    }
    body = checked("/v1/messages", TypeAdapter(dict[str, Any]).dump_json(fields))
    AnthropicMessagesRequest.model_validate_json(body.encoded())
