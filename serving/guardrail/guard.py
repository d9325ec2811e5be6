"""The guardrail as the ingress uses it: checks the texts of requests and of answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from serving.errors import WorkbenchError
from serving.guardrail.answers import answer_texts
from serving.guardrail.findings import (
    Finding,
    FindingCounts,
    blocked_entities,
    merge_overlaps,
    redacted,
    redacted_json,
)
from serving.guardrail.texts import RequestTexts, TextSlot
from serving.spec.guardrail import GuardEndpoint, GuardModel, PresidioGuardrail, Side

Inspector = Callable[[Side, Sequence[str]], Awaitable[list[list[Finding]]]]
"""Returns the findings in each of some texts of one side."""

NOT_WITH_GUARDRAIL = "not_with_guardrail"


class RefusedError(WorkbenchError):
    """A request or answer that may not pass; the message never contains any of its text.

    Args:
        message: What is wrong, shown to the client.
        code: OpenAI's ``code``, for programs.
        status: HTTP status.
        headers: Further response headers.
        param: OpenAI's ``param``, the field that is wrong.
        kind: OpenAI's ``type``; default: the usual one for the status.
    """

    def __init__(
        self,
        message: str,
        code: str | int,
        status: int = 400,
        headers: dict[str, str] | None = None,
        param: str | None = None,
        kind: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.headers = headers or {}
        self.param = param
        usual = {400: "invalid_request_error", 429: "rate_limit_error"}
        self.kind = kind or usual.get(status, "server_error")


class BlockedError(RefusedError):
    """The guardrail's rules block what was found."""

    def __init__(self, side: Side, entities: Sequence[str]) -> None:
        super().__init__(
            f"The guardrail blocked this {side}: it contains {', '.join(entities)}.",
            "content_blocked",
        )
        self.kind = "content_blocked"


class NotRedactableError(RefusedError):
    """Something to redact is where a replacement would change what the request means."""

    def __init__(self, field: str, entities: Sequence[str]) -> None:
        super().__init__(
            f"The guardrail cannot redact {field}, which contains {', '.join(entities)}. "
            "Remove it there.",
            "content_blocked",
            param=field.removeprefix("a key in "),
        )
        self.kind = "content_blocked"


_SEPARATOR = "\n|\n"
"""Between short texts that are checked together. No entity continues across it."""

View = tuple[str, list[tuple[TextSlot, int]]]
"""A text to check, and the slots in it with the position of each."""


class Guard:
    """One pipeline's guardrail.

    Args:
        spec: Which sides are checked.
        inspector: Finds what the spec looks for.
    """

    def __init__(
        self, spec: PresidioGuardrail | GuardModel | GuardEndpoint, inspector: Inspector
    ) -> None:
        self.spec = spec
        self._inspector = inspector

    async def check_prompt(self, texts: RequestTexts, counts: FindingCounts) -> None:
        """Redact the texts of a request in place, and count the findings.

        Raises:
            RefusedError: The request is blocked, has texts that the guardrail cannot read, or
                arguments that would reveal the answer past it.
        """
        leaking = texts.answer_leaking_arguments if "answer" in self.spec.sides else []
        if leaking:
            raise RefusedError(
                f"The guardrail does not allow {', '.join(leaking)}: it would reveal the answer "
                "unchecked. Leave it out.",
                NOT_WITH_GUARDRAIL,
                param=leaking[0],
            )
        if "prompt" not in self.spec.sides:
            return
        if texts.has_token_ids:
            raise RefusedError(
                "The guardrail cannot read a prompt of token ids. Send it as text.",
                NOT_WITH_GUARDRAIL,
            )
        if texts.unreadable:
            raise RefusedError(
                f"The guardrail cannot read {', '.join(texts.unreadable[:8])}. Leave it out, or "
                "send it as text.",
                NOT_WITH_GUARDRAIL,
                param=texts.unreadable[0].split(" ")[0],
            )
        views = _separate_views(texts.conversation, texts.details)
        for parts in texts.split_texts:
            views += [_joined_view(parts, ""), _joined_view(parts, "\n")]
        await self._redact("prompt", views, counts)

    async def check_answer(self, path: str, answer: dict[str, Any], counts: FindingCounts) -> None:
        """Redact the texts of a whole answer in place, and count the findings.

        Args:
            path: The route that gave the answer.
            answer: The answer's JSON.
            counts: Where the findings are counted.

        Raises:
            RefusedError: The answer is blocked, or the guardrail does not respond.
        """
        if "answer" in self.spec.sides:
            texts, details = answer_texts(path, answer)
            await self.redact_answer(texts, details, counts)

    async def redact_answer(
        self, texts: Sequence[TextSlot], details: Sequence[TextSlot], counts: FindingCounts
    ) -> None:
        """Redact texts of an answer in place, and count the findings.

        Args:
            texts: Texts that are checked one by one.
            details: Short texts that are checked together.
            counts: Where the findings are counted.

        Raises:
            RefusedError: The answer is blocked, or the guardrail does not respond.
        """
        await self._redact("answer", _separate_views(texts, details), counts)

    async def inspect(self, side: Side, texts: Sequence[str]) -> list[list[Finding]]:
        """Return the findings in each text.

        Raises:
            BlockedError: One of the findings blocks.
            RefusedError: The guardrail does not respond; no text passes unchecked.
        """
        try:
            findings = await self._inspector(side, texts)
        except Exception as error:
            raise RefusedError(
                f"The guardrail does not respond ({type(error).__name__}). Try again later.",
                "guardrail_unavailable",
                503,
            ) from None
        if entities := blocked_entities(finding for of_text in findings for finding in of_text):
            raise BlockedError(side, entities)
        return findings

    async def _redact(self, side: Side, views: Sequence[View], counts: FindingCounts) -> None:
        if not views:
            return
        findings = await self.inspect(side, [text for text, _ in views])
        by_slot: dict[TextSlot, list[Finding]] = {}
        continued = set()
        for (_, places), in_view in zip(views, findings, strict=True):
            for slot, offset in places if in_view else ():
                for finding in in_view:
                    start, end = finding.start - offset, finding.end - offset
                    if end > 0 and start < len(slot.text):
                        part = finding._replace(start=max(0, start), end=min(end, len(slot.text)))
                        by_slot.setdefault(slot, []).append(part)
                        if start < 0:
                            continued.add(slot)
        for slot, parts in by_slot.items():
            merged = merge_overlaps(parts)
            counts.record(merged[1:] if slot in continued else merged)
            _redact_slot(slot, merged)


def _separate_views(texts: Sequence[TextSlot], details: Sequence[TextSlot]) -> list[View]:
    """Return one view of each text, and one of all details together."""
    views: list[View] = [(slot.text, [(slot, 0)]) for slot in texts if slot.text.strip()]
    if details := [slot for slot in details if slot.text.strip()]:
        views.append(_joined_view(details, _SEPARATOR))
    return views


def _joined_view(slots: Sequence[TextSlot], separator: str) -> View:
    places, offset = [], 0
    for slot in slots:
        places.append((slot, offset))
        offset += len(slot.text) + len(separator)
    return separator.join(slot.text for slot in slots), places


def _redact_slot(slot: TextSlot, findings: Sequence[Finding]) -> None:
    entities = sorted({finding.entity for finding in findings if finding.action == "redact"})
    if not entities:
        return
    if not slot.replaceable:
        raise NotRedactableError(slot.field, entities)
    if not slot.is_json:
        slot.replace(redacted(slot.text, findings))
        return
    text, _ = redacted_json(slot.text, findings)
    if _is_json(slot.text) and not _is_json(text):
        raise NotRedactableError(slot.field, entities)
    slot.replace(text)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


class MicroBatcher:
    """Sends the texts of many requests in few calls.

    A call to another deployment costs more than the inspection of a short text, so texts that
    arrive while ``limit`` calls run share the next call.

    Args:
        call: Returns the findings in each text.
        limit: Calls that run at once.
    """

    def __init__(
        self, call: Callable[[list[str]], Awaitable[list[list[Finding]]]], limit: int
    ) -> None:
        self._call, self._limit = call, limit
        self._waiting: list[tuple[Sequence[str], asyncio.Future[list[list[Finding]]]]] = []
        self._running: set[asyncio.Task[None]] = set()

    async def __call__(self, side: Side, texts: Sequence[str]) -> list[list[Finding]]:
        """Return the findings in each text."""
        result = asyncio.get_running_loop().create_future()
        self._waiting.append((texts, result))
        self._start()
        findings: list[list[Finding]] = await result
        return findings

    def _start(self) -> None:
        if self._waiting and len(self._running) < self._limit:
            batch, self._waiting = self._waiting, []
            task = asyncio.create_task(self._run(batch))
            self._running.add(task)
            task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._start()

    async def _run(
        self, batch: list[tuple[Sequence[str], asyncio.Future[list[list[Finding]]]]]
    ) -> None:
        try:
            findings = iter(await self._call([text for texts, _ in batch for text in texts]))
        except Exception as error:
            for _, result in batch:
                if not result.done():
                    result.set_exception(error)
            return
        for texts, result in batch:
            of_texts = [next(findings) for _ in texts]
            if not result.done():  # done: its client disconnected
                result.set_result(of_texts)
