"""A streamed answer behind a guardrail: the same events, with their text held back and checked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import msgspec

from serving.gateway.stages import StageTimings
from serving.guardrail.findings import FindingCounts
from serving.guardrail.guard import Guard
from serving.guardrail.holdback import HoldbackBuffer

_decode = msgspec.json.Decoder(dict[str, Any]).decode
_TEXT_FIELDS = ("content", "reasoning", "reasoning_content", "refusal")

TextKey = tuple[int, str, int]
"""A choice's index, the name of its text, and the index of the tool call it belongs to."""


class GuardedStream:
    """Rewrites one stream. Text that is held back makes no event until it can be sent.

    Args:
        guard: Checks the texts.
        timings: Where the time of the checks is added.
        counts: Where the findings are counted.
    """

    def __init__(self, guard: Guard, timings: StageTimings, counts: FindingCounts) -> None:
        self._guard, self._timings, self._counts = guard, timings, counts
        self._buffers: dict[TextKey, HoldbackBuffer] = {}
        self._template: dict[str, Any] = {}

    async def rewrite(self, packets: AsyncIterator[str]) -> AsyncIterator[str]:
        """Yield the stream as it may be sent.

        Args:
            packets: The model's stream; each packet has some whole events, without ``[DONE]``.

        Raises:
            RefusedError: The answer is blocked from here on, or the guardrail does not respond.
        """
        async for packet in packets:
            out = [sent for data in event_data(packet) for sent in await self._event(_decode(data))]
            out += await self._check(list(self._buffers), last=False)
            if out:
                yield format_events(out)
        if out := await self._check(list(self._buffers), last=True):
            yield format_events(out)

    async def _event(self, event: dict[str, Any]) -> list[str]:
        """Return what can be sent at once: everything but text."""
        choices = event.get("choices")
        if not choices:
            return [_encode(event)]
        self._template = {name: event[name] for name in event if name not in ("choices", "usage")}
        out = []
        for choice in choices:
            text_only = self._buffer_text(choice)
            ends = choice.get("finish_reason") is not None
            if ends:
                keys = [key for key in self._buffers if key[0] == choice["index"]]
                out += await self._check(keys, last=True)
            if ends or not text_only:
                out.append(_encode(event | {"choices": [choice]}))
        return out

    def _buffer_text(self, choice: dict[str, Any]) -> bool:
        """Move a choice's text into its buffers; return whether the choice had nothing else."""
        index, delta = choice["index"], choice.get("delta")
        if delta is None:
            self._push((index, "text", 0), choice.get("text") or "")
            choice["text"] = ""
            return True
        for name in _TEXT_FIELDS:
            if delta.get(name):
                self._push((index, name, 0), delta.pop(name))
        for call in delta.get("tool_calls") or ():
            function = call.get("function") or {}
            if function.get("arguments"):
                self._push((index, "arguments", call["index"]), function["arguments"])
                function["arguments"] = ""
        opens = "role" in delta or any(
            call.get("id") or (call.get("function") or {}).get("name")
            for call in delta.get("tool_calls") or ()
        )
        return not opens

    def _push(self, key: TextKey, text: str) -> None:
        buffer = self._buffers.get(key)
        if buffer is None:
            spec = self._guard.spec
            buffer = self._buffers[key] = HoldbackBuffer(spec.hold_back_chars, spec.step_chars)
        buffer.push(text)

    async def _check(self, keys: list[TextKey], *, last: bool) -> list[str]:
        """Check the texts that are due, and return what may be sent of them as events."""
        buffers = [(key, self._buffers[key]) for key in keys]
        due = [(key, buf) for key, buf in buffers if (buf.held if last else buf.due())]
        if not due:
            return []
        texts = [buffer.text() for _, buffer in due]
        with self._timings.measure("guardrail_out"):
            findings = await self._guard.inspect("answer", texts)
        out = []
        for (key, buffer), of_text in zip(due, findings, strict=True):
            text, released = buffer.release(of_text, last=last)
            self._counts.record(released)
            if text:
                out.append(_encode(self._template | {"choices": [_choice(key, text)]}))
        return out


def event_data(packet: str) -> Iterator[str]:
    """Yield the data of each server-sent event in a packet of whole events."""
    for event in packet.split("\n\n"):
        if event.startswith("data:"):
            yield event[5:].strip()


def format_events(data: Iterable[str]) -> str:
    """Return one server-sent event for each item, ready to send."""
    return "".join(f"data: {item}\n\n" for item in data)


def _choice(key: TextKey, text: str) -> dict[str, Any]:
    index, name, call = key
    if name == "text":
        return {"index": index, "text": text, "finish_reason": None}
    delta: dict[str, Any] = {name: text}
    if name == "arguments":
        delta = {"tool_calls": [{"index": call, "function": {"arguments": text}}]}
    return {"index": index, "delta": delta, "finish_reason": None}


def _encode(event: dict[str, Any]) -> str:
    return msgspec.json.encode(event).decode()
