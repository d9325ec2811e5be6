"""The check of a request's body: parsed once, then checked field by field."""

from __future__ import annotations

from typing import Any

from serving.gateway.asgi import invalid_request
from serving.gateway.bodies.body import OUTPUT_LIMITS, Body
from serving.gateway.bodies.fields import POST_ROUTES
from serving.gateway.bodies.grammars import check_grammars
from serving.gateway.bodies.json_body import count_chars, parse_object
from serving.gateway.bodies.known_fields import select_fields
from serving.gateway.bodies.prompts import check_prompts, repeated_chars
from serving.spec.limits import Limits

MAX_ENTRIES = 1024
"""Entries of lists of token ids and words, and of ``logit_bias``."""
_LISTS = ("stop_token_ids", "allowed_token_ids", "bad_words", "logit_bias")


def check_body(path: str, raw: bytes, limits: Limits) -> Body:
    """Parse and check a body.

    Raises:
        ApiError: 400, names the invalid field; its value may be private and is never repeated.
    """
    route = POST_ROUTES[path]
    fields, ignored = select_fields(route, parse_object(raw), limits)
    chars = count_chars(fields)  # first: the other checks rely on its limit on nesting
    check_grammars(fields, limits, len(raw))
    prompts = check_prompts(route.kind, fields, limits)
    chars += repeated_chars(route.kind, fields, prompts)
    if chars > limits.max_prompt_chars:
        raise invalid_request(
            f"The prompt must have at most {limits.max_prompt_chars} characters.",
            "prompt_too_long",
        )
    _check_types(fields)
    _check_numbers(fields, limits)
    _check_stops(fields, limits)
    _check_template(fields)
    return Body(fields, chars, route.kind, prompts, ignored)


def _check_types(fields: dict[str, Any]) -> None:
    if not isinstance(fields.get("model"), str | None):
        raise invalid_request("model must be a string.", "invalid_type", "model")
    if not isinstance(fields.get("stream"), bool | None):
        raise invalid_request("stream must be true or false.", "invalid_type", "stream")


def _check_numbers(fields: dict[str, Any], limits: Limits) -> None:
    for name in (*OUTPUT_LIMITS, "min_tokens"):
        _check_at_most(fields, name, limits.max_tokens)
    _check_at_most(fields, "n", limits.max_choices)
    for name in _LISTS:
        entries = fields.get(name)
        if isinstance(entries, list | dict) and len(entries) > MAX_ENTRIES:
            raise invalid_request(
                f"{name} must have at most {MAX_ENTRIES} entries.", "too_many_values", name
            )


def _check_at_most(fields: dict[str, Any], name: str, limit: int) -> None:
    value = fields.get(name)
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise invalid_request(f"{name} must be an integer.", "invalid_type", name)
    if value > limit:
        raise invalid_request(f"{name} must be at most {limit}.", f"{name}_too_large", name)


def _check_stops(fields: dict[str, Any], limits: Limits) -> None:
    for name in ("stop", "stop_sequences"):
        stops = fields.get(name)
        stops = [stops] if isinstance(stops, str) else stops or []
        if not isinstance(stops, list):
            raise invalid_request(
                f"{name} must be a string or a list of strings.", "invalid_type", name
            )
        if len(stops) > limits.max_stop_strings:
            raise invalid_request(
                f"{name} must have at most {limits.max_stop_strings} strings.",
                "too_many_stops",
                name,
            )
        if any(isinstance(stop, str) and len(stop) > limits.max_stop_chars for stop in stops):
            raise invalid_request(
                f"A string in {name} must have at most {limits.max_stop_chars} characters.",
                "stop_too_long",
                name,
            )


def _check_template(fields: dict[str, Any]) -> None:
    if isinstance(kwargs := fields.get("chat_template_kwargs"), dict):
        for name in ("chat_template", "tokenize", "messages", "tools"):
            if name in kwargs:
                field = f"chat_template_kwargs.{name}"
                raise invalid_request(f"{field} is not accepted.", "unknown_parameter", field)
