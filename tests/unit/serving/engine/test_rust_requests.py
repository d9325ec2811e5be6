"""Which requests the Rust front end answers, and what it is sent."""

from __future__ import annotations

from typing import Any

import pytest

from serving.engine.rust_requests import estimated_prompt_tokens, is_supported, rust_fields

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "Why?"}]
STREAM = {"model": "m", "stream": True}


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"messages": MESSAGES}),
        (CHAT, {"messages": [{"role": "system", "content": ""}, *MESSAGES], "temperature": 0.5}),
        (CHAT, {"messages": MESSAGES, "n": 1, "stream_options": {"include_usage": True}}),
        (COMPLETION, {"prompt": "Once", "stop": ["."], "seed": 3}),
    ],
)
def test_plain_streams_are_supported(path: str, fields: dict[str, Any]) -> None:
    assert is_supported(path, STREAM | fields, "m")


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/responses", {"input": "Why?"}),
        (CHAT, {"messages": MESSAGES, "stream": False}),
        (CHAT, {"messages": MESSAGES, "model": "an-adapter"}),
        (CHAT, {"messages": MESSAGES, "n": 2}),
        (CHAT, {"messages": MESSAGES, "tools": []}),
        (CHAT, {"messages": MESSAGES, "logprobs": True}),
        (CHAT, {"messages": MESSAGES, "response_format": {"type": "json_object"}}),
        (CHAT, {"messages": MESSAGES, "a_new_field": 1}),
        (CHAT, {"messages": MESSAGES, "stream_options": {"continuous_usage_stats": True}}),
        (CHAT, {"messages": MESSAGES, "stream_options": 1}),
        (CHAT, {"messages": []}),
        (CHAT, {"messages": "Why?"}),
        (CHAT, {"messages": [{"role": "tool", "content": "4"}]}),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}]}),
        (CHAT, {"messages": [{"role": "user", "content": "Why?", "name": "x"}]}),
        (CHAT, {"prompt": "Once"} | {"messages": None}),
        # null is no limit of its own, so that of the service would not be sent
        (CHAT, {"messages": MESSAGES, "max_tokens": None}),
        (CHAT, {"messages": MESSAGES, "max_completion_tokens": None, "max_tokens": 5}),
        (COMPLETION, {"prompt": "Once", "max_tokens": None}),
        (COMPLETION, {"prompt": [1, 2, 3]}),
        (COMPLETION, {"prompt": ["one", "two"]}),
        (COMPLETION, {"prompt": [[1], [2]]}),
        (COMPLETION, {"prompt": [True]}),
        (COMPLETION, {"prompt": []}),
        (COMPLETION, {"prompt": ""}),
        (COMPLETION, {}),
    ],
)
def test_the_others_are_not(path: str, fields: dict[str, Any]) -> None:
    assert not is_supported(path, STREAM | fields, "m")


def test_a_body_may_leave_the_model_out() -> None:
    assert is_supported(COMPLETION, {"stream": True, "prompt": "Once"}, "m")


@pytest.mark.parametrize(
    ("path", "fields", "limits"),
    [
        (CHAT, {}, {"max_tokens": 100}),
        (CHAT, {"max_tokens": 7}, {"max_tokens": 7}),
        (CHAT, {"max_tokens": 700}, {"max_tokens": 100}),
        (CHAT, {"max_completion_tokens": 700}, {"max_completion_tokens": 100}),
        (COMPLETION, {}, {}),  # the default of a completion is 16
        (COMPLETION, {"max_tokens": 700}, {"max_tokens": 100}),
    ],
)
def test_answers_have_the_limit_that_the_engine_has_in_python(
    path: str, fields: dict[str, int], limits: dict[str, int]
) -> None:
    sent = rust_fields(path, fields, 100)
    assert {name: sent[name] for name in sent if name != "stream_options"} == limits
    assert rust_fields(path, fields, None) == {**fields, "stream_options": sent["stream_options"]}


def test_every_event_is_to_have_the_tokens_so_far() -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    assert rust_fields(CHAT, {"stream_options": {}}, 1)["stream_options"] == options


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({"prompt": "Once upon"}, 3),
        ({"messages": [{"role": "user", "content": "12345678"}] * 2}, 4),
    ],
)
def test_the_tokens_of_a_prompt_are_estimated(fields: dict[str, Any], tokens: int) -> None:
    assert estimated_prompt_tokens(fields) == tokens
