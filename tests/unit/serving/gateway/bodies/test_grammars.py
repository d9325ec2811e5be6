"""Limits on the grammars of a request, in every field that sets one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.gate_server import AUTHORIZED, ServedGate

from serving.gateway.asgi import ApiError
from serving.gateway.bodies.body_checks import check_body
from serving.gateway.bodies.fields import POST_ROUTES
from serving.spec.limits import Limits

SMALL = Limits(max_schema_bytes=600, max_enum_values=10, max_grammar_bytes=100, max_alternatives=8)
ENUM = {"type": "object", "properties": {"a": {"enum": list(range(11))}}}
BRANCHES = {"anyOf": [{"const": number} for number in range(9)]}
LARGE = {"type": "object", "properties": {"name" * 20 + str(n): {} for n in range(9)}}
TOO_MUCH = {
    "too_many_enum_values": ENUM,
    "too_many_alternatives": BRANCHES,
    "schema_too_large": LARGE,
    "grammar_too_large": {"type": "string", "pattern": "a" * 101},
}


def in_every_field(schema: Any) -> dict[str, tuple[str, dict[str, Any]]]:
    """The same schema in each field that accepts one, by a name: the route and its field."""
    chat, responses, messages = "/v1/chat/completions", "/v1/responses", "/v1/messages"
    function = {"name": "f", "parameters": schema}
    named = {"name": "n", "schema": schema}
    tag = {
        "structures": [{"begin": "<a>", "schema": schema, "end": "</a>"}],
        "triggers": ["<a>"],
    }
    return {
        "tools": (chat, {"tools": [{"type": "function", "function": function}]}),
        "response_format": (
            chat,
            {"response_format": {"type": "json_schema", "json_schema": named}},
        ),
        "completion": (
            "/v1/completions",
            {"response_format": {"type": "json_schema", "json_schema": named}},
        ),
        "structural tag": (chat, {"response_format": {"type": "structural_tag"} | tag}),
        "json": (chat, {"structured_outputs": {"json": schema}}),
        "json text": (chat, {"structured_outputs": {"json": json.dumps(schema)}}),
        "tag text": (chat, {"structured_outputs": {"structural_tag": json.dumps(tag)}}),
        "text": (responses, {"text": {"format": {"type": "json_schema"} | named}}),
        "responses tools": (responses, {"tools": [{"type": "function"} | function]}),
        "output_config": (
            messages,
            {"output_config": {"format": {"type": "json_schema", "schema": schema}}},
        ),
        "messages tools": (messages, {"tools": [{"name": "f", "input_schema": schema}]}),
        "count_tokens": ("/v1/messages/count_tokens", {"tools": [{"input_schema": schema}]}),
        "tokenize": ("/tokenize", {"tools": [{"function": function}]}),
    }


PROMPTS: dict[str, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "x"}]},
    "completion": {"prompt": "x"},
    "responses": {"input": "x"},
    "messages": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 5},
    "count_tokens": {"messages": [{"role": "user", "content": "x"}]},
    "tokenize": {"messages": [{"role": "user", "content": "x"}]},
}


def check(path: str, fields: dict[str, Any], limits: Limits = SMALL) -> None:
    prompt = PROMPTS[POST_ROUTES[path].kind]
    check_body(path, json.dumps(prompt | fields).encode(), limits)


@pytest.mark.parametrize("code", TOO_MUCH)
@pytest.mark.parametrize("place", in_every_field({}))
def test_each_limit_holds_in_each_field(place: str, code: str) -> None:
    path, fields = in_every_field(TOO_MUCH[code])[place]
    with pytest.raises(ApiError) as caught:
        check(path, fields)
    assert (caught.value.status, caught.value.code) == (400, code)
    assert caught.value.param in fields
    check(path, fields, Limits())


@pytest.mark.parametrize(
    ("grammar", "code"),
    [
        ({"regex": "a" * 101}, "grammar_too_large"),
        ({"regex": "|".join("abcdefghij")}, "too_many_alternatives"),
        ({"grammar": "root ::= " + " | ".join('"a"' for _ in range(10))}, "too_many_alternatives"),
        ({"choice": list("abcdefghijk")}, "too_many_enum_values"),
        ({"json": "[" * 100_000}, "schema_too_deep"),
        ({"json": '{"a": ' + "[" * 60 + "]" * 60 + "}"}, "schema_too_deep"),
    ],
    ids=range(6),
)  # fmt: skip
def test_grammars_of_vllm_are_limited(grammar: dict[str, Any], code: str) -> None:
    limits = SMALL.model_copy(update={"max_schema_bytes": 10**6})
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses"):
        with pytest.raises(ApiError) as caught:
            check(path, {"structured_outputs": grammar}, limits)
        assert caught.value.code == code


def test_the_limits_count_all_fields_together() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"enum": [1] * 6}}}
    check("/v1/chat/completions", {"tools": [tool]})
    with pytest.raises(ApiError, match="at most 10 values in enums"):
        check("/v1/chat/completions", {"tools": [tool, tool]})


def test_a_real_set_of_tools_passes() -> None:
    """A hundred tools of an agent, each with ten parameters, some of them enums."""
    parameter = {"type": "string", "description": "What to search for, in a few words. " * 2}
    properties = {f"parameter_{n}": parameter for n in range(10)}
    properties["unit"] = {"type": "string", "enum": ["celsius", "fahrenheit", "kelvin"]}  # type: ignore[dict-item]
    schema = {"type": "object", "properties": properties, "required": ["unit"]}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    check("/v1/chat/completions", {"tools": [tool] * 100}, Limits())


def test_a_request_over_a_limit_does_not_reach_the_application(served: ServedGate) -> None:
    served.config = served.config.model_copy(update={"limits": SMALL})
    with served.http(AUTHORIZED) as client:
        body = {"messages": [], "structured_outputs": {"json": ENUM}}
        reply = client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "too_many_enum_values"
    assert reply.json()["error"]["param"] == "structured_outputs"
    assert served.app.log == []
