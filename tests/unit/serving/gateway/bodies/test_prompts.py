"""Prompts, messages and media, on every route that has them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.gateway.asgi import ApiError
from serving.gateway.bodies.body_checks import check_body
from serving.spec.limits import Limits

LIMITS = Limits(max_prompts=3, max_messages=3)
EMBEDDINGS = "/v1/embeddings"
MESSAGE = {"role": "user", "content": "a"}
DATA_URL = "data:image/png;base64,AAAA"
HTTP_URL = "http://169.254.169.254/latest"


def prompts(route: str, fields: dict[str, Any]) -> int:
    return check_body(route, json.dumps(fields).encode(), LIMITS).prompts


def rejected(route: str, fields: dict[str, Any]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        prompts(route, fields)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    ("route", "fields", "expected"),
    [
        (EMBEDDINGS, {"input": "a"}, 1),
        (EMBEDDINGS, {"input": ["a", "b", "c"]}, 3),
        (EMBEDDINGS, {"input": [1, 2, 3, 4, 5]}, 1),
        (EMBEDDINGS, {"input": [[1, 2], [3]]}, 2),
        (EMBEDDINGS, {"input": [MESSAGE, MESSAGE]}, 1),
        (EMBEDDINGS, {"input": [[MESSAGE], [MESSAGE]]}, 2),
        (EMBEDDINGS, {"messages": [MESSAGE, MESSAGE]}, 1),
        (EMBEDDINGS, {"messages": [[MESSAGE], [MESSAGE]]}, 2),
        ("/rerank", {"query": "a", "documents": ["b", "c", "d"]}, 3),
        ("/v2/rerank", {"query": "a", "documents": "b"}, 1),
        ("/score", {"queries": "a", "documents": ["b", "c"]}, 2),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["b", "c"]}, 2),
        ("/score", {"data_1": [{"content": []}], "data_2": [{"content": []}] * 3}, 3),
        ("/v1/completions", {"prompt": []}, 1),
        ("/v1/responses", {"input": [MESSAGE, MESSAGE]}, 1),
    ],
)
def test_prompts_are_counted(route: str, fields: dict[str, Any], expected: int) -> None:
    assert prompts(route, fields) == expected


@pytest.mark.parametrize(
    ("route", "fields", "param"),
    [
        ("/v1/completions", {"prompt": ["a"] * 4}, "prompt"),
        (EMBEDDINGS, {"input": ["a"] * 4}, "input"),
        (EMBEDDINGS, {"input": [[1]] * 4}, "input"),
        (EMBEDDINGS, {"input": [{"content": "a"}] * 4}, "input"),
        (EMBEDDINGS, {"messages": [[MESSAGE]] * 4}, "messages"),
        ("/rerank", {"documents": ["a"] * 4}, "documents"),
        ("/v1/rerank", {"documents": [1] * 4}, "documents"),
        ("/v1/rerank", {"documents": [MESSAGE] * 4}, "documents"),
        *(
            ("/score", {name: ["a"] * 4}, name)
            for name in ("queries", "documents", "items", "data_1", "data_2", "text_1", "text_2")
        ),
    ],
)
def test_too_many_prompts_are_rejected_on_every_route(
    route: str, fields: dict[str, Any], param: str
) -> None:
    error = rejected(route, fields)
    assert (error.code, error.param) == ("too_many_prompts", param)


@pytest.mark.parametrize(
    ("route", "fields"),
    [
        ("/v1/chat/completions", {"messages": [MESSAGE] * 4}),
        ("/v1/responses", {"input": [MESSAGE] * 4}),
        ("/v1/messages", {"messages": [MESSAGE] * 4}),
        ("/v1/messages/count_tokens", {"messages": [MESSAGE] * 4}),
        ("/tokenize", {"messages": [MESSAGE] * 4}),
        (EMBEDDINGS, {"messages": [MESSAGE] * 4}),
        (EMBEDDINGS, {"messages": [[MESSAGE] * 4]}),
        (EMBEDDINGS, {"input": [MESSAGE] * 4}),
        (EMBEDDINGS, {"input": [[MESSAGE], [MESSAGE] * 4]}),
    ],
)
def test_too_many_messages_are_rejected_on_every_route(route: str, fields: dict[str, Any]) -> None:
    assert rejected(route, fields).code == "too_many_messages"


@pytest.mark.parametrize(
    ("route", "fields"),
    [
        ("/rerank", {"query": "a" * 40, "documents": ["b", "c", "d"]}),
        ("/score", {"queries": ["a" * 40], "documents": ["b", "c", "d"]}),
        ("/score", {"text_1": ["b", "c", "d"], "text_2": "a" * 40}),
        ("/score", {"data_1": {"content": "a" * 40}, "data_2": ["b", "c", "d"]}),
    ],
)
def test_a_text_compared_with_three_counts_three_times(route: str, fields: dict[str, Any]) -> None:
    body = check_body(route, json.dumps(fields).encode(), LIMITS)
    assert 120 <= body.prompt_chars < 180
    assert body.reserved_tokens == -(-body.prompt_chars // 4)
    with pytest.raises(ApiError) as caught:
        check_body(route, json.dumps(fields).encode(), Limits(max_prompt_chars=119))
    assert caught.value.code == "prompt_too_long"


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def with_media(url: str) -> list[tuple[str, dict[str, Any]]]:
    """Requests with one URL in every place where a route reads media."""
    input_image = {"type": "input_image", "image_url": url}
    output = {"type": "function_call_output", "call_id": "1", "output": [input_image]}
    source = {"type": "url", "url": url} if url == HTTP_URL else {"type": "base64", "data": "AA=="}
    picture = {"type": "image", "source": source}
    result = {"type": "tool_result", "tool_use_id": "1", "content": [picture]}
    user = {"role": "user"}
    return [
        ("/v1/chat/completions", {"messages": [user | {"content": [image(url)]}]}),
        ("/v1/chat/completions", {"messages": [user | {"content": [{"image_url": url}]}]}),
        ("/v1/chat/completions", {"messages": [user | {"content": [{"audio_url": url}]}]}),
        ("/v1/responses", {"input": [user | {"content": [input_image]}]}),
        ("/v1/responses", {"input": [user | {"content": [{"file_url": url}]}]}),
        ("/v1/responses", {"input": [output]}),
        ("/v1/messages", {"messages": [user | {"content": [picture]}]}),
        ("/v1/messages", {"messages": [user | {"content": [result]}]}),
        ("/v1/messages", {"system": [picture]}),
        ("/v1/messages/count_tokens", {"messages": [user | {"content": [picture]}]}),
        ("/tokenize", {"messages": [user | {"content": [image(url)]}]}),
        (EMBEDDINGS, {"messages": [user | {"content": [image(url)]}]}),
        (EMBEDDINGS, {"messages": [[user | {"content": [image(url)]}]]}),
        (EMBEDDINGS, {"input": [user | {"content": [image(url)]}]}),
        ("/rerank", {"query": {"content": [image(url)]}}),
        ("/rerank", {"documents": [{"content": [image(url)]}]}),
        ("/score", {"queries": {"content": [image(url)]}}),
        ("/score", {"data_2": [{"content": [image(url)]}]}),
    ]


@pytest.mark.parametrize(("route", "fields"), with_media(HTTP_URL))
def test_media_at_an_address_is_rejected_wherever_it_is(route: str, fields: dict[str, Any]) -> None:
    error = rejected(route, fields)
    assert error.code == "remote_media"
    assert error.param
    assert HTTP_URL not in error.message


@pytest.mark.parametrize(("route", "fields"), with_media(DATA_URL))
def test_media_in_the_request_passes(route: str, fields: dict[str, Any]) -> None:
    prompts(route, fields)


def test_arguments_of_tools_may_have_addresses() -> None:
    schema = {"type": "object", "properties": {"image_url": {"type": "string"}}}
    tools = [{"name": "show", "input_schema": schema}]
    call = {"type": "tool_use", "id": "1", "name": "show", "input": {"image_url": HTTP_URL}}
    messages = [{"role": "assistant", "content": [call]}]
    prompts("/v1/messages", {"tools": tools, "messages": messages})


@pytest.mark.parametrize(
    ("item", "field"),
    [
        ({"type": "item_reference", "id": "x"}, "input[1].type"),
        ({"type": "computer_call_output", "output": {"image_url": HTTP_URL}}, "input[1].type"),
        ({"type": "file_search_call", "queries": []}, "input[1].type"),
        ({"type": None, "content": "x"}, "input[1].type"),
        ("text", "input[1]"),
        ({"content": "no role"}, "input[1].role"),
        ({"type": "message", "role": 7, "content": "x"}, "input[1].role"),
    ],
)
def test_an_item_that_no_model_reads_is_rejected(item: Any, field: str) -> None:
    assert rejected("/v1/responses", {"input": [MESSAGE, item]}).param == field


def test_items_of_a_conversation_with_tools_pass() -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "c", "output": "1"}
    reasoning = {"type": "reasoning", "id": "r", "summary": []}
    assert prompts("/v1/responses", {"input": [reasoning, call, result]}) == 1
