"""A streamed answer behind a guardrail: the same events, with their text held back and checked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import msgspec

from serving.gateway.stages import StageTimings
from serving.guardrail.events import (
    ChatEvents,
    EventFormat,
    Flush,
    MessagesEvents,
    ResponsesEvents,
    Send,
    Step,
    Text,
    TextKey,
)
from serving.guardrail.findings import FindingCounts
from serving.guardrail.guard import Guard
from serving.guardrail.holdback import HoldbackBuffer
from serving.guardrail.texts import TextSlot

_decode = msgspec.json.Decoder(dict[str, Any]).decode

_FORMATS: dict[str, type[EventFormat]] = {
    "/v1/responses": ResponsesEvents,
    "/v1/messages": MessagesEvents,
}


class GuardedStream:
    """Rewrites one stream. Text that is held back makes no event until it can be sent.

    Args:
        guard: Checks the texts.
        path: The route, which determines the format of the events.
        timings: Where the time of the checks is added.
        counts: Where the findings are counted.
    """

    def __init__(
        self, guard: Guard, path: str, timings: StageTimings, counts: FindingCounts
    ) -> None:
        self._guard, self._timings, self._counts = guard, timings, counts
        self._format = _FORMATS.get(path, ChatEvents)()
        self._buffers: dict[TextKey, _Buffer] = {}
        self._repeated: dict[str, str] = {}
        self.sequence_number = 0
        """Number of the next event, in formats that number their events."""

    async def rewrite(self, packets: AsyncIterator[str]) -> AsyncIterator[str]:
        """Yield the stream as it may be sent.

        Args:
            packets: The model's stream; each packet has some whole events, without ``[DONE]``.

        Raises:
            RefusedError: The answer is blocked from here on, or the guardrail does not respond.
        """
        if "answer" not in self._guard.spec.sides:
            async for packet in packets:
                yield packet
            return
        async for packet in packets:
            out = [
                sent
                for data in event_data(packet)
                for step in self._format.steps(_decode(data))
                for sent in await self._apply(step)
            ]
            out += await self._check(list(self._buffers), last=False)
            if out:
                yield "".join(out)
        if out := await self._check(list(self._buffers), last=True):
            yield "".join(out)

    async def _apply(self, step: Step) -> list[str]:
        """Take one step of an event, and return what can be sent at once."""
        if isinstance(step, Text):
            self._buffer(step).push(step.text)
            return []
        if isinstance(step, Flush):
            return await self._check([key for key in self._buffers if step.ends(key)], last=True)
        await self._redact(step)
        return [self._encode(step.event)]

    def _buffer(self, step: Text) -> _Buffer:
        buffer = self._buffers.get(step.key)
        if buffer is None:
            spec = self._guard.spec
            buffer = self._buffers[step.key] = _Buffer(
                spec.hold_back_chars, spec.step_chars, is_json=step.is_json
            )
        buffer.template = step.template
        return buffer

    async def _redact(self, step: Send) -> None:
        """Redact the texts of an event; those already streamed are repeated as sent."""
        texts = [slot for slot in step.texts if not self._repeat(slot)]
        if texts or step.details:
            with self._timings.measure("guardrail_out"):
                await self._guard.redact_answer(texts, step.details, self._counts)

    def _repeat(self, slot: TextSlot) -> bool:
        sent = self._repeated.get(slot.text)
        if sent is not None:
            slot.replace(sent)
        return sent is not None

    async def _check(self, keys: list[TextKey], *, last: bool) -> list[str]:
        """Check the texts that are due, and return what may be sent of them as events."""
        buffers = [(key, self._buffers[key]) for key in keys]
        due = [(key, buf) for key, buf in buffers if (buf.held if last else buf.due())]
        out = []
        if due:
            texts = [buffer.text() for _, buffer in due]
            with self._timings.measure("guardrail_out"):
                findings = await self._guard.inspect("answer", texts)
            for (key, buffer), of_text in zip(due, findings, strict=True):
                text, released = buffer.release(of_text, last=last)
                self._counts.record(released)
                if text:
                    out.append(self._encode(self._format.event(key, text, buffer.template)))
        if last:
            for key in keys:
                buffer = self._buffers.pop(key)
                if self._format.repeats_texts:
                    self._repeated[buffer.pushed] = buffer.sent
        return out

    def _encode(self, event: dict[str, Any]) -> str:
        if "sequence_number" in event:
            event["sequence_number"] = self.sequence_number
            self.sequence_number += 1
        name = event.get("type") if self._format.has_names else None
        line = f"event: {name}\n" if name else ""
        return f"{line}data: {msgspec.json.encode(event).decode()}\n\n"


class _Buffer(HoldbackBuffer):
    """The text of one key, what has been sent of it, and the event that carries the next part."""

    def __init__(self, hold: int, step: int, *, is_json: bool) -> None:
        super().__init__(hold, step, is_json=is_json)
        self.template: dict[str, Any] = {}
        self._pushed: list[str] = []
        self._sent: list[str] = []

    def push(self, text: str) -> None:
        super().push(text)
        self._pushed.append(text)

    def release(self, findings: Any, *, last: bool) -> Any:
        released = super().release(findings, last=last)
        self._sent.append(released[0])
        return released

    @property
    def pushed(self) -> str:
        """The whole text as the model wrote it."""
        return "".join(self._pushed)

    @property
    def sent(self) -> str:
        """The whole text as it was sent."""
        return "".join(self._sent)


def event_data(packet: str) -> Iterator[str]:
    """Yield the data of each server-sent event in a packet of whole events."""
    for event in packet.replace("\r\n", "\n").split("\n\n"):
        lines = [line[5:].removeprefix(" ") for line in event.split("\n") if line[:5] == "data:"]
        if lines:
            yield "\n".join(lines)


def format_events(data: Iterable[str]) -> str:
    """Return one server-sent event for each item, ready to send."""
    return "".join(f"data: {item}\n\n" for item in data)


def format_error(path: str, body: dict[str, Any], sequence_number: int = 0) -> str:
    """Return an error as the event that ends a stream of a route.

    Args:
        path: The route.
        body: The error in OpenAI's format, with the key ``error``.
        sequence_number: Number of the event, in formats that number their events.
    """
    error = body["error"]
    event: dict[str, Any]
    if path == "/v1/messages":
        event = {"type": "error", "error": {"type": error["type"], "message": error["message"]}}
    elif path == "/v1/responses":
        event = {name: error.get(name) for name in ("code", "message", "param")}
        event |= {"type": "error", "sequence_number": sequence_number}
    else:
        return format_events([msgspec.json.encode(body).decode()])
    return f"event: error\ndata: {msgspec.json.encode(event).decode()}\n\n"
