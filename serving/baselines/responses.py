"""The response objects of OpenAI's API, whole or as server-sent events."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import msgspec

from serving.baselines.requests import Event
from serving.baselines.tokenizer import TextStream
from serving.gateway.asgi import error_body

DONE = b"data: [DONE]\n\n"


class ResponseFormat:
    """The objects of one answer, for a completion or a chat."""

    def __init__(self, model: str, chat: bool) -> None:
        self._chat = chat
        kind = "chat.completion" if chat else "text_completion"
        self._id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._base = {"id": self._id, "object": kind, "created": int(time.time()), "model": model}
        self._chunk = self._base | {"object": "chat.completion.chunk" if chat else kind}

    def opening(self) -> bytes:
        """Return the first event of a streamed chat; nothing for a completion."""
        choice = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        return _sse(self._chunk | {"choices": [choice]}) if self._chat else b""

    def chunk(self, text: str, finish: str | None) -> bytes:
        """Return an event with new text."""
        content = {"delta": {"content": text}} if self._chat else {"text": text}
        return _sse(self._chunk | {"choices": [{"index": 0, **content, "finish_reason": finish}]})

    def usage(self, prompt_tokens: int, output_tokens: int) -> bytes:
        """Return the event with the token counts."""
        return _sse(self._chunk | {"choices": [], "usage": _usage(prompt_tokens, output_tokens)})

    def whole(
        self, text: str, finish: str | None, prompt_tokens: int, output_tokens: int
    ) -> dict[str, Any]:
        """Return an answer in one object."""
        message = {"role": "assistant", "content": text}
        content = {"message": message} if self._chat else {"text": text}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish}
        return self._base | {"choices": [choice], "usage": _usage(prompt_tokens, output_tokens)}


async def stream_response(
    events: AsyncGenerator[Event, None],
    text: TextStream,
    shape: ResponseFormat,
    prompt_tokens: int | None,
) -> AsyncIterator[bytes]:
    """Yield server-sent events, one per token as vLLM does.

    The token counts come last if `prompt_tokens` is given.
    """
    output_tokens = 0
    if opening := shape.opening():
        yield opening
    async with aclosing(events):
        async for event in events:
            if event.error is not None:
                yield _sse(error_body(event.error, "server_error", "engine_error"))
                break
            output_tokens += len(event.tokens)
            last = len(event.tokens) - 1
            for i, token in enumerate(event.tokens):
                yield shape.chunk(text.add([token]), event.finish if i == last else None)
    if prompt_tokens is not None:
        yield shape.usage(prompt_tokens, output_tokens)
    yield DONE


def _usage(prompt_tokens: int, output_tokens: int) -> dict[str, int]:
    total = prompt_tokens + output_tokens
    counts = {"prompt_tokens": prompt_tokens, "completion_tokens": output_tokens}
    return counts | {"total_tokens": total}


def _sse(value: Any) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"
