"""The check of a request's body: parsed once, then checked field by field.

The engine gets the checked fields re-encoded, never the original bytes. Two parsers may read one
text differently, for example if a name occurs twice, and would let a refused field through.
"""

from __future__ import annotations

import json
import math
from typing import Any

from serving.gateway.asgi import ApiError
from serving.gateway.body import Body
from serving.gateway.fields import POST_ROUTES, REFUSAL_REASONS
from serving.spec.limits import Limits

MAX_DEPTH = 48
"""Levels of nested JSON; real requests with a tool's schema have a dozen."""
MAX_INT = 2**63 - 1
MAX_ENTRIES = 1024
"""Entries of lists of token ids and words, and of ``logit_bias``."""


def check_body(route: str, raw: bytes, limits: Limits) -> Body:
    """Parse and check a body.

    Raises:
        ApiError: 400, names the invalid field; its value may be private and is never repeated.
    """
    fields = _parse(raw)
    for name in fields:
        if name not in POST_ROUTES[route]:
            raise _unknown_field(name)
    chars = _count_chars(fields)
    if chars > limits.max_prompt_chars:
        raise _invalid(
            f"The prompt must have at most {limits.max_prompt_chars} characters.",
            "prompt_too_long",
        )
    _check_counts(fields, limits)
    _check_stops(fields, limits)
    _check_chat(fields, limits)
    return Body(fields, chars)


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(raw.decode(), parse_constant=_refuse_constant)
    except RecursionError:
        raise _too_deep() from None
    except UnicodeDecodeError:
        raise _invalid("The body is not UTF-8.", "invalid_json") from None
    except ValueError as error:
        # The parser's message names a position, never the text.
        detail = (
            f" ({error.msg}, at {error.pos})" if isinstance(error, json.JSONDecodeError) else ""
        )
        raise _invalid(f"The body is not JSON{detail}.", "invalid_json") from None
    if not isinstance(fields, dict):
        raise _invalid("The body is not a JSON object.", "invalid_json")
    return fields


def _refuse_constant(name: str) -> Any:
    raise _invalid(f"The body contains {name}, which is not JSON.", "invalid_json")


def _unknown_field(name: str) -> ApiError:
    label = name if name.isidentifier() and len(name) < 64 else "A field"
    default = "this route has no such field, or clients may not set it"
    reason = REFUSAL_REASONS.get(name, default)
    return _invalid(f"{label} is not accepted here: {reason}.", "unknown_parameter")


def _too_deep() -> ApiError:
    return _invalid(f"The body is nested deeper than {MAX_DEPTH} levels.", "invalid_json")


def _count_chars(value: Any, depth: int = 1) -> int:
    """Count the characters of all strings in ``value``, a number as one; check each value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict | list):
        if depth > MAX_DEPTH:
            raise _too_deep()
        if isinstance(value, list):
            return sum(_count_chars(inner, depth + 1) for inner in value)
        return sum(len(name) + _count_chars(inner, depth + 1) for name, inner in value.items())
    if isinstance(value, float) and not math.isfinite(value):
        raise _invalid("A number is too large.", "invalid_number")
    if isinstance(value, int) and abs(value) > MAX_INT:
        raise _invalid("A number is too large.", "invalid_number")
    return 1


def _check_counts(fields: dict[str, Any], limits: Limits) -> None:
    for name in ("max_tokens", "max_completion_tokens", "min_tokens"):
        _check_at_most(fields, name, limits.max_tokens)
    _check_at_most(fields, "n", limits.max_choices)
    prompt = fields.get("prompt")
    is_batch = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
    answers = (fields.get("n") or 1) * (len(prompt) if is_batch and prompt else 1)
    if answers > limits.max_choices:
        raise _invalid(
            f"n times the number of prompts must be at most {limits.max_choices}, got {answers}.",
            "too_many_choices",
        )
    for name in ("stop_token_ids", "allowed_token_ids", "bad_words", "logit_bias"):
        entries = fields.get(name)
        if isinstance(entries, list | dict) and len(entries) > MAX_ENTRIES:
            raise _invalid(f"{name} must have at most {MAX_ENTRIES} entries.", "too_many_values")


def _check_at_most(fields: dict[str, Any], name: str, limit: int) -> None:
    value = fields.get(name)
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise _invalid(f"{name} must be an integer.", "invalid_type")
    if value > limit:
        raise _invalid(f"{name} must be at most {limit}.", f"{name}_too_large")


def _check_stops(fields: dict[str, Any], limits: Limits) -> None:
    stops = fields.get("stop")
    stops = [stops] if isinstance(stops, str) else stops or []
    if not isinstance(stops, list):
        raise _invalid("stop must be a string or a list of strings.", "invalid_type")
    if len(stops) > limits.max_stop_strings:
        raise _invalid(
            f"stop must have at most {limits.max_stop_strings} strings.", "too_many_stops"
        )
    if any(isinstance(stop, str) and len(stop) > limits.max_stop_chars for stop in stops):
        raise _invalid(
            f"A stop string must have at most {limits.max_stop_chars} characters.",
            "stop_too_long",
        )


def _check_chat(fields: dict[str, Any], limits: Limits) -> None:
    if not isinstance(fields.get("model"), str | None):
        raise _invalid("model must be a string.", "invalid_type")
    if not isinstance(fields.get("stream"), bool | None):
        raise _invalid("stream must be true or false.", "invalid_type")
    messages = fields.get("messages")
    if isinstance(messages, list):
        if len(messages) > limits.max_messages:
            raise _invalid(
                f"messages must have at most {limits.max_messages} entries.", "too_many_messages"
            )
        for message in messages:
            _check_media(message)
    if isinstance(kwargs := fields.get("chat_template_kwargs"), dict):
        for name in ("chat_template", "tokenize", "messages", "tools"):
            if name in kwargs:
                raise _invalid(f"chat_template_kwargs.{name} is not accepted.", "unknown_parameter")


def _check_media(message: Any) -> None:
    """Refuse media by URL: the server would fetch whatever the URL names."""
    parts = message.get("content") if isinstance(message, dict) else None
    for part in parts if isinstance(parts, list) else []:
        for name, value in part.items() if isinstance(part, dict) else ():
            url = value.get("url") if isinstance(value, dict) else value
            if name.endswith("_url") and not (isinstance(url, str) and url.startswith("data:")):
                raise _invalid(
                    f"{name} must contain the data itself (data:...), not an address.",
                    "remote_media",
                )


def _invalid(message: str, code: str) -> ApiError:
    return ApiError(400, message, code)
