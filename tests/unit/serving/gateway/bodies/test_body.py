"""The check of a request's body: each limit from both sides, and nothing private in an error."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.gateway.asgi import ApiError
from serving.gateway.bodies.body_checks import check_body
from serving.gateway.bodies.fields import POST_ROUTES, REJECTED
from serving.gateway.bodies.json_body import MAX_DEPTH
from serving.spec.limits import Limits

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
LIMITS = Limits(
    max_prompt_chars=100,
    max_messages=3,
    max_tokens=50,
    max_choices=4,
    max_prompts=3,
    max_stop_strings=2,
    max_stop_chars=5,
)


def accepted(fields: dict[str, Any], route: str = COMPLETIONS) -> dict[str, Any]:
    body = check_body(route, json.dumps(fields).encode(), LIMITS)
    encoded: dict[str, Any] = json.loads(body.encoded())
    return encoded


def refused(raw: bytes, route: str = COMPLETIONS, limits: Limits = LIMITS) -> ApiError:
    with pytest.raises(ApiError) as caught:
        check_body(route, raw, limits).encoded()
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"7",
        b'{"prompt": NaN}',
        b'{"prompt": -Infinity}',
        b'{"temperature": 1e999}',
        b'{"seed": ' + b"9" * 30 + b"}",
        b'{"seed": ' + b"9" * 5000 + b"}",
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a"} trailing',
        b"[" * 100_000,
        b'{"logit_bias": ' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"logit_bias": ' + b'{"a":' * 500 + b"1" + b"}" * 501,
        b"\x00\x01\x02",
        b"\xef\xbb\xbf{}",
    ],
)
def test_invalid_bodies_are_refused(raw: bytes) -> None:
    assert refused(raw).code in ("invalid_json", "invalid_number")


@pytest.mark.parametrize(
    ("name", "limit"),
    [("max_tokens", 50), ("min_tokens", 50), ("n", 4)],
)
def test_numbers_up_to_their_limit_pass(name: str, limit: int) -> None:
    assert accepted({"prompt": "a", name: limit})[name] == limit
    assert str(limit) in refused(json.dumps({"prompt": "a", name: limit + 1}).encode()).message
    wrong_types: tuple[Any, ...] = ("1", 1.5, True, [1], {})
    for wrong in wrong_types:
        assert name in refused(json.dumps({"prompt": "a", name: wrong}).encode()).message


def test_prompts_and_choices_have_their_own_limits() -> None:
    accepted({"prompt": ["a", "b", "c"], "n": 4})
    accepted({"prompt": [1, 2, 3, 4, 5, 6]})
    for prompts in (["a"] * 4, [[1]] * 4):
        error = refused(json.dumps({"prompt": prompts}).encode())
        assert (error.code, error.param) == ("too_many_prompts", "prompt")
    assert Limits().max_prompts == 128


def test_stop_strings_are_limited_in_number_and_length() -> None:
    accepted({"prompt": "a", "stop": ["12345", "b"]})
    assert refused(b'{"prompt": "a", "stop": ["a", "b", "c"]}').code == "too_many_stops"
    assert refused(b'{"prompt": "a", "stop": "123456"}').code == "stop_too_long"
    assert refused(b'{"prompt": "a", "stop": {"a": 1}}').code == "invalid_type"
    error = refused(b'{"stop_sequences": ["a", "b", "c"]}', "/v1/messages")
    assert (error.code, error.param) == ("too_many_stops", "stop_sequences")


def test_prompt_length_counts_all_texts() -> None:
    accepted({"prompt": "a" * 80})
    assert refused(b'{"prompt": "' + b"a" * 101 + b'"}').code == "prompt_too_long"
    assert refused(b'{"prompt": [' + b"1," * 101 + b"1]}").code == "prompt_too_long"
    message = {"role": "user", "content": [{"type": "text", "text": "a" * 101}]}
    raw = json.dumps({"messages": [message]}).encode()
    assert refused(raw, CHAT).code == "prompt_too_long"


def test_messages_are_limited_in_number() -> None:
    message = {"role": "user", "content": "a"}
    accepted({"messages": [message] * 3}, CHAT)
    assert (
        refused(json.dumps({"messages": [message] * 4}).encode(), CHAT).code == "too_many_messages"
    )


@pytest.mark.parametrize("url", ["http://a/b", "https://a", "file:///etc/passwd", {"url": "ftp:"}])
def test_media_must_be_in_the_request_and_are_never_fetched(url: Any) -> None:
    limits = Limits()
    message = {"role": "user", "content": [{"type": "image_url", "image_url": url}]}
    raw = json.dumps({"messages": [message]}).encode()
    assert refused(raw, CHAT, limits).code == "remote_media"
    message["content"][0]["image_url"] = {"url": "data:image/png;base64,AAAA"}
    check_body(CHAT, json.dumps({"messages": [message]}).encode(), limits)


def test_the_engine_gets_the_checked_value_of_a_duplicate_field() -> None:
    raw = b'{"prompt": "a", "n": 100, "n": 2}'
    assert check_body(COMPLETIONS, raw, LIMITS).encoded() == b'{"prompt":"a","n":2}'
    refused(b'{"prompt": "a", "n": 2, "n": 100}')


def test_errors_never_repeat_a_value() -> None:
    secret = "my-secret-value"
    for fields in (
        {"model": [secret]},
        {"max_tokens": secret},
        {"stop": secret},
        {"prompt": secret * 50},
    ):
        assert secret not in refused(json.dumps(fields).encode()).message
    assert secret not in refused(f'{{"prompt": "{secret}", }}'.encode()).message
    strict = Limits(unknown_fields="reject")
    assert secret not in refused(json.dumps({secret + " x": 1}).encode(), limits=strict).message


def test_usage_is_requested_and_hidden_unless_the_client_asked_for_it() -> None:
    plain = check_body(COMPLETIONS, b'{"prompt": "a"}', LIMITS)
    plain.request_usage()
    assert (plain.hide_usage, "stream_options" in plain.fields) == (False, False)
    stream = check_body(COMPLETIONS, b'{"prompt": "a", "stream": true}', LIMITS)
    stream.request_usage()
    assert stream.hide_usage
    assert stream.fields["stream_options"] == {"include_usage": True}
    asked = b'{"stream": true, "stream_options": {"include_usage": true, "x": 1}}'
    shown = check_body(COMPLETIONS, asked, LIMITS)
    shown.request_usage()
    assert (shown.hide_usage, shown.fields["stream_options"]["x"]) == (False, 1)
    for route in ("/v1/responses", "/v1/messages"):
        other = check_body(route, b'{"stream": true}', LIMITS)
        other.request_usage()
        assert (other.hide_usage, "stream_options" in other.fields) == (False, False)


def test_reserved_tokens() -> None:
    raw = b'{"prompt": ["aaaa", "aaaa"], "max_tokens": 10, "n": 3}'
    chars = sum(map(len, ("prompt", "aaaaaaaa", "max_tokens", "n"))) + 2
    assert check_body(COMPLETIONS, raw, LIMITS).reserved_tokens == -(-chars // 4) + 2 * 3 * 10


@pytest.mark.parametrize(
    ("route", "name"),
    [
        (CHAT, "max_tokens"),
        (CHAT, "max_completion_tokens"),
        ("/v1/responses", "max_output_tokens"),
        ("/v1/messages", "max_tokens"),
    ],
)
def test_every_route_that_generates_has_the_limit_on_output(route: str, name: str) -> None:
    body = check_body(route, json.dumps({name: 50}).encode(), LIMITS)
    assert body.reserved_tokens >= 50
    error = refused(json.dumps({name: 51}).encode(), route)
    assert (error.code, error.param) == (f"{name}_too_large", name)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=20,
)
FIELDS = sorted({"unknown", *REJECTED}.union(*(route.accepted for route in POST_ROUTES.values())))


@settings(max_examples=30)
@given(
    fields=st.dictionaries(st.sampled_from(FIELDS), VALUES), route=st.sampled_from([*POST_ROUTES])
)
def test_any_fields_are_refused_or_encoded_as_json(fields: dict[str, Any], route: str) -> None:
    try:
        body = check_body(route, json.dumps(fields).encode(), Limits())
        body.request_usage()
        encoded = body.encoded()
    except ApiError:
        return
    given = {name for name, value in fields.items() if value is not None}
    passed = json.loads(encoded).keys()
    assert passed - {"stream_options"} == (given & POST_ROUTES[route].accepted) - {"stream_options"}
    assert set(body.ignored) == given - POST_ROUTES[route].accepted - REJECTED.keys()
    assert body.reserved_tokens >= 0


@settings(max_examples=100)
@given(raw=st.binary(max_size=200))
def test_any_bytes_are_refused_or_a_json_object(raw: bytes) -> None:
    try:
        check_body(CHAT, raw, Limits())
    except ApiError:
        return
    assert isinstance(json.loads(raw), dict)


def test_nesting_up_to_the_limit_passes() -> None:
    deep: Any = 1
    for _ in range(MAX_DEPTH - 1):
        deep = [deep]
    check_body(CHAT, json.dumps({"metadata": deep}).encode(), Limits())
    refused(json.dumps({"metadata": [[deep]]}).encode(), CHAT)


@pytest.mark.parametrize("levels", [60, 600, 990, 10_000, 400_000])
@pytest.mark.parametrize("opening", ['{"a":', "["])
def test_a_deep_field_is_named_however_deep_it_is(levels: int, opening: str) -> None:
    closing = ("}" if opening.startswith("{") else "]") * levels
    head = '{"user": "response_format \\" {[", "model": "m", "response_format": '
    raw = head + opening * levels + "1" + closing + "}"
    error = refused(raw.encode(), CHAT, Limits())
    assert (error.code, error.param) == ("invalid_json", "response_format")
    assert str(MAX_DEPTH) in error.message
