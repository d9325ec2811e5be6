"""A request's body: read within its limits, and re-encoded for the engine."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from serving.gateway.asgi import ApiError, Receive
from serving.gateway.bodies.fields import Kind
from serving.gateway.concurrency import FullError
from serving.spec.limits import Limits

HELD_BYTES = 64 * 2**20
"""Bytes of all bodies held at one gate; a flood of large ones must not fill memory."""
OUTPUT_LIMITS = ("max_completion_tokens", "max_output_tokens", "max_tokens")
"""Fields with the largest number of tokens in an answer."""
GRAMMARS = ("structured_outputs", "response_format", "tools", "text", "output_config")
"""Fields that may restrict the answer by a grammar."""


@dataclass
class Body:
    """A checked body.

    Attributes:
        fields: Its fields by name.
        prompt_chars: Characters of all strings in it; a number counts as one.
        kind: The format of the request and its answer.
        prompts: Number of prompts, texts or documents in it.
        ignored: Names of unknown fields that were left out.
        hide_usage: Whether the usage event of a stream is kept from the client.
    """

    fields: dict[str, Any]
    prompt_chars: int
    kind: Kind
    prompts: int = 1
    ignored: tuple[str, ...] = ()
    hide_usage: bool = False

    @property
    def model(self) -> str | None:
        """The model it names, if any."""
        return self.fields.get("model")

    @property
    def streams(self) -> bool:
        """Whether it asks for a stream of events."""
        return bool(self.fields.get("stream"))

    @property
    def reserved_tokens(self) -> int:
        """Tokens it may cost: a quarter of the prompt's characters, plus the answers asked for."""
        output = next((self.fields[name] for name in OUTPUT_LIMITS if self.fields.get(name)), 0)
        answers = self.prompts * max(1, self.fields.get("n") or 1)
        return math.ceil(self.prompt_chars / 4) + max(0, output) * answers

    @property
    def constrained(self) -> bool:
        """Whether a grammar set by the client restricts the answer's tokens."""
        return is_constrained(self.fields)

    def request_usage(self) -> None:
        """Make a stream end with the engine's own token count, hidden from the client.

        One small event per stream costs less than reading every event, and counts what those do
        not show: the prompt, and several tokens in one event. Streams in other formats than those
        of chat and completions always end with their usage.
        """
        if self.streams and self.kind in ("chat", "completion"):
            options = self.fields.get("stream_options")
            if not (isinstance(options, dict) and options.get("include_usage")):
                self.hide_usage = True
                self.fields["stream_options"] = {"include_usage": True}

    def encoded(self) -> bytes:
        """Return the body to send to the engine, as JSON.

        Raises:
            ApiError: 400, a string cannot be encoded as UTF-8.
        """
        text = json.dumps(self.fields, ensure_ascii=False, separators=(",", ":"))
        try:
            return text.encode()
        except UnicodeEncodeError:
            raise ApiError(400, "A string has half of a surrogate pair.", "invalid_json") from None


def is_constrained(fields: Mapping[str, Any]) -> bool:
    """Return whether a grammar set by the client restricts the answer's tokens."""
    return any(fields.get(name) for name in GRAMMARS)


class BodyMemory:
    """Counts the bytes of the bodies held at one gate.

    Args:
        limit: Bytes that all of them may have together.
    """

    def __init__(self, limit: int = HELD_BYTES) -> None:
        self.limit = limit
        self.held = 0

    @contextmanager
    def hold(self) -> Iterator[Callable[[int], None]]:
        """Yield a function that reserves bytes, or raises ``FullError``; release all at the end."""
        reserved = 0

        def reserve(size: int) -> None:
            nonlocal reserved
            if self.held + size > self.limit:
                raise FullError
            reserved += size
            self.held += size

        try:
            yield reserve
        finally:
            self.held -= reserved


async def read_body(
    receive: Receive, limits: Limits, reserve: Callable[[int], None]
) -> bytes | None:
    """Read the whole body.

    Args:
        receive: ASGI's ``receive``.
        limits: The largest body and the longest wait for it.
        reserve: Called with the size of each part in bytes before the part is kept.

    Returns:
        The body, or None if the client disconnected.

    Raises:
        ApiError: 413, the body is too large, or 408, it is too slow.
    """
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                part = message.get("body", b"")
                size += len(part)
                if size > limits.max_body_bytes:
                    raise body_too_large(limits)
                reserve(len(part))
                parts.append(part)
                more = message.get("more_body", False)
    except TimeoutError:
        raise ApiError(
            408,
            f"The request body did not arrive within {limits.body_timeout_s:g} s.",
            "request_timeout",
        ) from None
    return b"".join(parts)


def body_too_large(limits: Limits) -> ApiError:
    """Return the error for a body beyond its limit."""
    return ApiError(
        413,
        f"The request body exceeds the limit of {limits.max_body_bytes} bytes.",
        "body_too_large",
    )
