"""The parts of a body that the model reads: how many prompts and messages, and no remote media."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from serving.gateway.asgi import ApiError, invalid_request
from serving.gateway.bodies.fields import Kind
from serving.gateway.bodies.json_body import count_chars
from serving.spec.limits import Limits

BATCHES: dict[Kind, tuple[str, ...]] = {
    "completion": ("prompt",),
    "embedding": ("input", "messages"),
    "rerank": ("documents",),
    "score": ("queries", "documents", "items", "data_1", "data_2", "text_1", "text_2"),
}
"""Fields that may have several prompts, each of which the model computes on by itself."""

ITEMS = ("message", "function_call", "function_call_output", "reasoning")
"""Types of input items of the Responses API that vLLM reads."""

MEDIA_FIELDS = ("messages", "input", "system", "query", *BATCHES["score"])
"""Fields whose content may have images and other media."""


def check_prompts(kind: Kind, fields: dict[str, Any], limits: Limits) -> int:
    """Check what the model is to read.

    Returns:
        The number of prompts.

    Raises:
        ApiError: 400, there are too many prompts or messages, or media at an address.
    """
    prompts = 1
    for name in BATCHES.get(kind, ()):
        size = _batch_size(kind, fields.get(name))
        if size > limits.max_prompts:
            raise invalid_request(
                f"{name} must have at most {limits.max_prompts} entries, got {size}.",
                "too_many_prompts",
                name,
            )
        prompts = max(prompts, size)
    for name in ("messages", "input"):
        for messages in _conversations(kind, fields.get(name)):
            if len(messages) > limits.max_messages:
                raise invalid_request(
                    f"{name} must have at most {limits.max_messages} entries.",
                    "too_many_messages",
                    name,
                )
    if kind == "responses" and isinstance(fields.get("input"), list):
        _check_items(fields["input"])
    for name in MEDIA_FIELDS:
        _check_media(fields.get(name))
    return prompts


def _check_items(items: list[Any]) -> None:
    """Reject input items for which vLLM has no message; it would fail with status 500."""
    for number, item in enumerate(items):
        item_type = item.get("type", "message") if isinstance(item, dict) else None
        if item_type not in ITEMS:
            field = f"input[{number}].type" if isinstance(item, dict) else f"input[{number}]"
            raise invalid_request(
                f"{field} must be the type of an item: {', '.join(ITEMS)}.", "invalid_value", field
            )
        if item_type == "message" and not isinstance(item.get("role"), str):
            field = f"input[{number}].role"
            raise invalid_request(f"{field} is required.", "missing_parameter", field)


def repeated_chars(kind: Kind, fields: dict[str, Any], prompts: int) -> int:
    """Return the characters that the model reads again for each prompt after the first.

    Scoring compares one text with each of several documents.
    """
    if kind not in ("rerank", "score"):
        return 0
    names = ("query", "instruction", "chat_template_kwargs", *BATCHES["score"])
    single = {name: fields[name] for name in names if name in fields}
    single = {name: value for name, value in single.items() if _batch_size(kind, value) == 1}
    return (prompts - 1) * count_chars(single)


def _batch_size(kind: Kind, value: Any) -> int:
    """Return the number of prompts in a field: a text, a list of tokens or a conversation is one.

    A list in a scoring request is a list of texts or documents, whatever its entries are.
    """
    if not isinstance(value, list) or not value:
        return 1
    single = kind in ("completion", "embedding") and (
        isinstance(value[0], int | float) or (isinstance(value[0], dict) and "role" in value[0])
    )
    return 1 if single else len(value)


def _conversations(kind: Kind, value: Any) -> Iterator[list[Any]]:
    if not isinstance(value, list):
        return
    if kind != "embedding":
        yield value
        return
    if value and isinstance(value[0], dict):
        yield value
    yield from (
        inner for inner in value if isinstance(inner, list) and inner and isinstance(inner[0], dict)
    )


def _check_media(value: Any) -> None:
    """Reject media by URL: the server would fetch whatever the URL names.

    Only content is searched, so that a tool may have an argument whose name ends with ``_url``.
    """
    if isinstance(value, list):
        for inner in value:
            _check_media(inner)
    elif isinstance(value, dict):
        for name, inner in value.items():
            if name in ("content", "output"):
                _check_media(inner)
            elif name.endswith("_url"):
                _check_url(name, inner.get("url") if isinstance(inner, dict) else inner)
            elif name == "source" and isinstance(inner, dict) and inner.get("type") == "url":
                raise _remote(name)


def _check_url(name: str, url: Any) -> None:
    if not (isinstance(url, str) and url.startswith("data:")):
        raise _remote(name)


def _remote(name: str) -> ApiError:
    label = name if name.isidentifier() and len(name) < 64 else "A part"
    message = f"{label} must contain the data itself (data:... or base64), not an address."
    return invalid_request(message, "remote_media", label)
