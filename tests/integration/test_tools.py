"""Tool calls, structured output and adapters, on one deployment of the embedded model.

The tiny model cannot call a tool by itself. A regular expression in the request makes it write a
call; everything after the model's text is the product's own path.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel, Field
from support.lora import write_adapter
from support.shared_service import Deployed

import workbench as wb
from serving.models.embedded import tiny_model_path
from workbench.endpoints.deployed import Endpoint

# The first test waits for two deployments or more.
pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

QUESTION: Any = [{"role": "user", "content": "Will it rain in Oslo?"}]
DESCRIBE: Any = [{"role": "user", "content": "Describe a KV cache as JSON."}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CLOCK: Any = {
    "type": "function",
    "function": {
        "name": "clock",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"const": "UTC"}},
            "required": ["zone"],
            "additionalProperties": False,
        },
    },
}
NAMED: Any = {"type": "function", "function": {"name": "weather"}}
CALL = r'<tool_call>\{"name": "weather", "arguments": \{"city": "Oslo"\}\}</tool_call>'


class Card(BaseModel):
    """Every field is bounded: the tiny model would not end a string by itself."""

    name: str = Field(max_length=12)
    kind: Literal["cache", "queue"]
    count: int = Field(ge=0, le=9)


@pytest.fixture(scope="module")
def endpoint(deployed: Deployed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    adapter = tmp_path_factory.mktemp("adapter")
    write_adapter(tiny_model_path(), adapter)
    kwargs = {
        "enable_auto_tool_choice": True,
        "tool_call_parser": "hermes",
    }
    spec = wb.ServiceSpec(
        name="tools",
        route_prefix="/tools",
        port=0,
        model=wb.ModelSpec(
            id="base", max_model_len=1024, engine_kwargs=kwargs, adapters={"pirate": str(adapter)}
        ),
    )
    with wb.deploy(spec, progress=lambda line: None) as endpoint:
        yield endpoint


def ask(endpoint: Endpoint, stream: bool, **fields: Any) -> tuple[str | None, str, dict[str, Any]]:
    """Return the finish reason, the text, and the arguments of each called function."""
    request: dict[str, Any] = {"model": "base", "messages": QUESTION, "tools": [WEATHER, CLOCK]}
    request |= {"max_tokens": 120, "temperature": 0} | fields
    client = endpoint.client.chat.completions
    if not stream:
        (choice,) = client.create(**request).choices
        calls = [call.function for call in choice.message.tool_calls or []]
        arguments = {call.name: json.loads(call.arguments) for call in calls}
        return choice.finish_reason, choice.message.content or "", arguments
    with client.stream(**request) as events:
        (choice,) = events.get_final_completion().choices
    calls = [call.function for call in choice.message.tool_calls or []]
    arguments = {call.name: json.loads(call.arguments) for call in calls}
    return choice.finish_reason, choice.message.content or "", arguments


def post(endpoint: Endpoint, path: str, body: dict[str, Any]) -> Any:
    url = endpoint.base_url.removesuffix("/v1") + path
    key = endpoint.api_key.get_secret_value()
    return httpx.post(url, json=body, headers={"authorization": f"Bearer {key}"}, timeout=60).json()


@pytest.mark.parametrize("stream", [False, True])
class TestToolChoice:
    def test_named(self, endpoint: Endpoint, stream: bool) -> None:
        reason, text, calls = ask(endpoint, stream, tool_choice=NAMED)
        assert (reason, text) == ("stop", "")  # as OpenAI's own API answers
        assert list(calls) == ["weather"]
        assert calls["weather"]["city"] in ("Oslo", "Rome")

    def test_required(self, endpoint: Endpoint, stream: bool) -> None:
        reason, text, calls = ask(endpoint, stream, tool_choice="required")
        assert (reason, text) == ("tool_calls", "")
        assert calls.keys() <= {"weather", "clock"}
        assert calls

    def test_auto_with_a_call(self, endpoint: Endpoint, stream: bool) -> None:
        call = {"structured_outputs": {"regex": CALL}}
        reason, text, calls = ask(endpoint, stream, tool_choice="auto", extra_body=call)
        assert (reason, text, calls) == ("tool_calls", "", {"weather": {"city": "Oslo"}})

    def test_auto_without_a_call(self, endpoint: Endpoint, stream: bool) -> None:
        reason, text, calls = ask(endpoint, stream)
        assert (reason, calls) == ("stop", {})
        assert text

    def test_none(self, endpoint: Endpoint, stream: bool) -> None:
        call = {"structured_outputs": {"regex": CALL}}
        reason, text, calls = ask(endpoint, stream, tool_choice="none", extra_body=call)
        assert (reason, calls) == ("stop", {})
        assert text.startswith('<tool_call>{"name": "weather"')


def test_a_call_and_its_result_are_part_of_the_next_turn(endpoint: Endpoint) -> None:
    function = {"name": "weather", "arguments": '{"city": "Oslo"}'}
    messages = [
        *QUESTION,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call-1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "call-1", "content": "It rains all day."},
    ]
    reason, text, calls = ask(endpoint, False, messages=messages)
    assert (reason, calls) == ("stop", {})
    assert text
    body = {"model": "base", "messages": messages, "tools": [WEATHER]}
    tokens = post(endpoint, "/tokenize", body)["tokens"]
    prompt = post(endpoint, "/detokenize", {"model": "base", "tokens": tokens})["prompt"]
    assert '"enum": ["Oslo", "Rome"]' in prompt
    assert '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>' in prompt
    assert "It rains all day." in prompt


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tools": [{"type": "function", "function": {"parameters": {}}}]}, "function.name"),
        ({"tool_choice": {"type": "function", "function": {"name": "nope"}}}, "tool_choice"),
    ],
)
def test_an_invalid_tool_is_an_error_that_names_the_field(
    endpoint: Endpoint, fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(endpoint, False, **fields)
    assert field in str(caught.value.param)
    assert field in caught.value.message
    assert ask(endpoint, False)[0] == "stop"


def test_an_adapter_answers_to_its_name(endpoint: Endpoint) -> None:
    base, adapted = (ask(endpoint, False, model=name)[1] for name in ("base", "pirate"))
    assert base != adapted
    with pytest.raises(openai.NotFoundError) as caught:
        ask(endpoint, False, model="buccaneer")
    assert "buccaneer" in caught.value.message


class TestStructuredOutput:
    def test_a_pydantic_class_is_parsed(self, endpoint: Endpoint) -> None:
        for seed in range(5):
            reply = endpoint.client.chat.completions.parse(
                model="base",
                messages=DESCRIBE,
                response_format=Card,
                max_tokens=200,
                temperature=1,
                seed=seed,
            )
            assert isinstance(reply.choices[0].message.parsed, Card)

    def test_json_mode_writes_no_space_between_parts(self, endpoint: Endpoint) -> None:
        # Without this bias the model stays in its first string: its training had no quotes.
        tokens = post(endpoint, "/tokenize", {"model": "base", "prompt": '"'})["tokens"]
        for seed in range(5):
            (choice,) = endpoint.client.chat.completions.create(
                model="base",
                messages=DESCRIBE,
                response_format={"type": "json_object"},
                logit_bias={str(tokens[-1]): 8},
                max_tokens=400,
                temperature=1,
                seed=seed,
            ).choices
            assert choice.message.content
            outside = "".join(choice.message.content.split('"')[::2])
            assert "  " not in outside
            assert "\n" not in outside

    def test_what_the_backend_cannot_enforce_is_rejected(self, endpoint: Endpoint) -> None:
        schema = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
        form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        with pytest.raises(openai.BadRequestError, match="not supported by xgrammar"):
            endpoint.client.chat.completions.create(
                model="base", messages=DESCRIBE, response_format=form
            )
