"""A streamed answer behind a guardrail: the same events, their text held back and looked at."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from serving.gateway.stages import StageTimings
from serving.guardrail.findings import Finding, FindingCounts, redacted
from serving.guardrail.guard import Guard

_decode = msgspec.json.Decoder(dict[str, Any]).decode
_TEXTS = ("content", "reasoning", "reasoning_content", "refusal")

Where = tuple[int, str, int]
"""A choice's index, the name of its text, and the index of the tool call it belongs to."""


class GuardedStream:
    """Rewrites one stream. Text that waits makes no event: what comes out later comes together."""

    def __init__(self, guard: Guard, stages: StageTimings, tally: FindingCounts) -> None:
        self._guard, self._stages, self._tally = guard, stages, tally
        self._windows: dict[Where, HoldbackBuffer] = {}
        self._template: dict[str, Any] = {}

    async def rewrite(self, packets: AsyncIterator[str]) -> AsyncIterator[str]:
        """The packets (each some whole events, without ``[DONE]``) as they may be sent.

        Raises:
            RefusedError: the answer is blocked from here on, or the guardrail does not answer.
        """
        async for packet in packets:
            out = [sent for data in events(packet) for sent in await self._event(_decode(data))]
            out += await self._look(list(self._windows), last=False)
            if out:
                yield as_events(out)
        if out := await self._look(list(self._windows), last=True):
            yield as_events(out)

    async def _event(self, event: dict[str, Any]) -> list[str]:
        """What can be sent at once: all but text."""
        choices = event.get("choices")
        if not choices:
            return [_encoded(event)]
        self._template = {name: event[name] for name in event if name not in ("choices", "usage")}
        out = []
        for choice in choices:
            said = self._take(choice)
            if choice.get("finish_reason") is not None:
                own = [where for where in self._windows if where[0] == choice["index"]]
                out += await self._look(own, last=True)
            if choice.get("finish_reason") is not None or not said:
                out.append(_encoded(event | {"choices": [choice]}))
        return out

    def _take(self, choice: dict[str, Any]) -> bool:
        """Move a choice's text into its windows; whether that was all it held."""
        index, delta = choice["index"], choice.get("delta")
        if delta is None:
            self._push((index, "text", 0), choice.get("text") or "")
            choice["text"] = ""
            return True
        for name in _TEXTS:
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

    def _push(self, where: Where, text: str) -> None:
        window = self._windows.get(where)
        if window is None:
            spec = self._guard.spec
            window = self._windows[where] = HoldbackBuffer(spec.hold_back_chars, spec.step_chars)
        window.push(text)

    async def _look(self, places: list[Where], *, last: bool) -> list[str]:
        """Look at the texts that are due, and make events of what they let out."""
        due = [w for w in places if (self._windows[w].held if last else self._windows[w].due())]
        if not due:
            return []
        texts = [self._windows[where].text() for where in due]
        with self._stages.measure("guardrail_out"):
            every = await self._guard.look("answer", texts)
        out = []
        for where, findings in zip(due, every, strict=True):
            text, over = self._windows[where].release(findings, last=last)
            self._tally.note(over)
            if text:
                out.append(_encoded(self._template | {"choices": [_choice(where, text)]}))
        return out


def events(packet: str) -> Iterator[str]:
    """The data of each event of some whole events."""
    for event in packet.split("\n\n"):
        if event.startswith("data:"):
            yield event[5:].strip()


def as_events(datas: Iterable[str]) -> str:
    """One event each, as they are sent."""
    return "".join(f"data: {data}\n\n" for data in datas)


def _choice(where: Where, text: str) -> dict[str, Any]:
    index, name, call = where
    if name == "text":
        return {"index": index, "text": text, "finish_reason": None}
    delta: dict[str, Any] = {name: text}
    if name == "arguments":
        delta = {"tool_calls": [{"index": call, "function": {"arguments": text}}]}
    return {"index": index, "delta": delta, "finish_reason": None}


def _encoded(event: dict[str, Any]) -> str:
    return msgspec.json.encode(event).decode()


MAX_WORD = 256
"""Characters of a longest word: an e-mail address has 254 at most (RFC 5321)."""


CONTEXT = 64
"""Characters already let out that a look begins with: words before a number say what it is."""


class HoldbackBuffer:
    """The text of one answer between the model and the client.

    At most ``hold + step`` characters wait for a look, and MAX_WORD more where a word is not over.
    """

    def __init__(self, hold: int, step: int) -> None:
        self._hold, self._step = hold, step
        self._out = ""  # the end of what was let out, as it was before any redaction
        self._held = ""
        self._new = 0

    @property
    def held(self) -> int:
        """Characters that wait."""
        return len(self._held)

    def push(self, text: str) -> None:
        """Take what the model said next."""
        self._held += text
        self._new += len(text)

    def due(self) -> bool:
        """Whether a look could let something out and enough has come since the last one."""
        return self._new >= self._step and self.held > self._hold

    def text(self) -> str:
        """What is to be looked at."""
        return self._out + self._held

    def release(self, findings: Sequence[Finding], *, last: bool) -> tuple[str, list[Finding]]:
        """What is safe to let out, with what is to be redacted replaced, and the findings in it.

        ``findings`` are those of ``text()``; ``last`` lets out all of it.
        """
        before = len(self._out)
        own = [
            found._replace(start=max(0, found.start - before), end=found.end - before)
            for found in findings
            if found.end > before
        ]
        cut = self.held if last else self._safe(own)
        over = [found for found in own if found.end <= cut]
        out = redacted(self._held[:cut], over)
        self._out = (self._out + self._held[:cut])[-CONTEXT:]
        self._held, self._new = self._held[cut:], 0
        return out, over

    def _safe(self, findings: Sequence[Finding]) -> int:
        """How much of what was looked at can go: no word and no finding is cut."""
        cut = max(0, self.held - self._hold)
        word = _word_start(self._held, cut)
        cut = word if self.held - word <= self._hold + MAX_WORD else cut
        for found in reversed(findings):
            if found.start < cut < found.end:
                cut = found.start
        return cut


def _word_start(text: str, at: int) -> int:
    """Where the word begins that position ``at`` lies in; ``at`` itself between words."""
    while at > 0 and at < len(text) and not text[at - 1].isspace() and not text[at].isspace():
        at -= 1
    return at
