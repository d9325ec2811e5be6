"""Unknown, rejected, absent and coerced fields."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.gateway.asgi import ApiError
from serving.gateway.bodies.body import Body
from serving.gateway.bodies.body_checks import check_body
from serving.gateway.bodies.fields import POST_ROUTES
from serving.gateway.bodies.known_fields import MAX_HEADER_CHARS, ignored_header
from serving.spec.limits import Limits

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"


def checked(fields: dict[str, Any], route: str = CHAT, **limits: Any) -> Body:
    return check_body(route, json.dumps(fields).encode(), Limits(**limits))


def rejected(fields: dict[str, Any], route: str = CHAT, **limits: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        checked(fields, route, **limits)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    "name",
    [
        "chat_template",
        "priority",
        "prompt_logprobs",
        "use_beam_search",
        "vllm_xargs",
        "kv_transfer_params",
        "ec_transfer_params",
        "mm_processor_kwargs",
        "media_io_kwargs",
        "prompt_embeds",
        "request_id",
        "session_id",
        "stream_interval",
        "best_of",
    ],
)
@pytest.mark.parametrize("route", POST_ROUTES)
def test_engine_arguments_are_rejected_by_name_with_a_reason(route: str, name: str) -> None:
    error = rejected({name: 7}, route)
    assert (error.code, error.param) == ("unknown_parameter", name)
    assert error.message.startswith(f"{name} is not accepted here: ")
    assert len(error.message) < 200


@pytest.mark.parametrize(
    "name", ["logits_processors", "guided_decoding_backend", "engine_kwargs", "__proto__", "guided"]
)
@pytest.mark.parametrize("route", POST_ROUTES)
def test_unknown_fields_never_reach_the_application(route: str, name: str) -> None:
    body = checked({name: {"a": 1}}, route)
    assert (body.fields, body.ignored) == ({}, (name,))
    error = rejected({name: 1}, route, unknown_fields="reject")
    assert (error.code, error.param) == ("unknown_parameter", name)


def test_ignored_fields_do_not_count_as_a_prompt() -> None:
    assert checked({"note": "a" * 100}, max_prompt_chars=10).prompt_chars == 0


@pytest.mark.parametrize(
    ("route", "name", "value"),
    [
        (COMPLETIONS, "best_of", 1),
        (COMPLETIONS, "suffix", ""),
        (COMPLETIONS, "use_beam_search", False),
        (CHAT, "modalities", ["text"]),
        (CHAT, "priority", 0),
        (CHAT, "prompt_logprobs", None),
        (CHAT, "vllm_xargs", {}),
        (CHAT, "function_call", "none"),
        (CHAT, "functions", []),
        (RESPONSES, "enable_response_messages", False),
        (RESPONSES, "prompt", None),
        ("/v1/embeddings", "padding", "do_not_pad"),
    ],
)
def test_harmless_values_of_rejected_fields_are_left_out(route: str, name: str, value: Any) -> None:
    body = checked({name: value}, route)
    assert (body.fields, body.ignored) == ({}, ())


@pytest.mark.parametrize(
    ("route", "name", "value"),
    [
        (COMPLETIONS, "best_of", 2),
        (CHAT, "modalities", ["text", "audio"]),
        (CHAT, "prompt_logprobs", 0),
        (CHAT, "web_search_options", {"search_context_size": "low"}),
        (RESPONSES, "conversation", "conv_1"),
    ],
)
def test_other_values_are_not(route: str, name: str, value: Any) -> None:
    assert rejected({name: value}, route).param == name


@pytest.mark.parametrize(
    ("route", "name"),
    [
        (CHAT, "max_tokens"),
        (CHAT, "max_completion_tokens"),
        (CHAT, "seed"),
        (CHAT, "top_k"),
        (COMPLETIONS, "n"),
        (COMPLETIONS, "logprobs"),
        (RESPONSES, "max_output_tokens"),
        ("/v1/messages", "max_tokens"),
        ("/v1/embeddings", "dimensions"),
        ("/rerank", "top_n"),
    ],
)
def test_whole_numbers_are_integers(route: str, name: str) -> None:
    value = checked({name: 16.0}, route).fields[name]
    assert (value, type(value)) == (16, int)


def test_fractions_are_not_integers() -> None:
    assert rejected({"max_tokens": 16.5}).param == "max_tokens"


def test_null_means_absent() -> None:
    everything: dict[str, Any] = dict.fromkeys(POST_ROUTES[CHAT].accepted)
    body = checked(everything | {"unknown": None, "chat_template": None})
    assert (body.fields, body.ignored) == ({}, ())
    nested = {"stream_options": {"include_usage": None, "x": 1}, "response_format": {"type": None}}
    assert checked(nested).fields == {"stream_options": {"x": 1}, "response_format": {}}


def test_null_keeps_its_meaning_where_it_has_one() -> None:
    messages = [{"role": "assistant", "content": None}]
    fields = {"messages": messages, "chat_template_kwargs": {"date": None}}
    assert checked(fields).fields == fields


class TestHeader:
    def test_it_lists_the_names(self) -> None:
        assert ignored_header(()) == []
        assert ignored_header(("a", "b.c-d")) == [("x-ignored-fields", "a, b.c-d")]

    def test_unsafe_names_are_only_counted(self) -> None:
        names = ("a\r\nx-injected: 1", "é", "", "x" * 500, "a,b")
        assert ignored_header(("ok", *names)) == [("x-ignored-fields", "ok, 5 more")]
        assert ignored_header(names) == [("x-ignored-fields", "5 with other names")]

    def test_it_is_bounded(self) -> None:
        ((_, value),) = ignored_header(tuple(f"field_{number}" for number in range(10_000)))
        assert len(value) < MAX_HEADER_CHARS + 20
        assert value.endswith(" more")
