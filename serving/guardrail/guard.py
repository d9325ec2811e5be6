"""The guardrail as the ingress uses it: checks the texts of requests and of answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from serving.errors import WorkbenchError
from serving.guardrail.findings import Finding, FindingCounts, blocked_entities, redacted
from serving.guardrail.texts import RequestTexts, TextSlot, attribute_slot
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
    """

    def __init__(
        self, message: str, code: str, status: int = 400, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.headers = headers or {}
        self.kind = {400: "invalid_request_error", 429: "rate_limit_error"}.get(
            status, "server_error"
        )


class BlockedError(RefusedError):
    """The guardrail's rules block what was found."""

    def __init__(self, side: Side, entities: Sequence[str]) -> None:
        super().__init__(
            f"The guardrail blocked this {side}: it contains {', '.join(entities)}.",
            "content_blocked",
        )
        self.kind = "content_blocked"


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
            )
        if "prompt" in self.spec.sides:
            if texts.has_token_ids:
                raise RefusedError(
                    "The guardrail cannot read a prompt of token ids. Send it as text.",
                    NOT_WITH_GUARDRAIL,
                )
            await self._redact("prompt", texts.slots, counts)

    async def check_answer(self, answer: Any, counts: FindingCounts) -> None:
        """Redact the texts of a whole answer in place, and count the findings.

        Raises:
            RefusedError: The answer is blocked, or the guardrail does not respond.
        """
        if "answer" in self.spec.sides:
            await self._redact("answer", _answer_slots(answer), counts)

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

    async def _redact(self, side: Side, slots: Sequence[TextSlot], counts: FindingCounts) -> None:
        slots = [slot for slot in slots if slot.text.strip()]
        if not slots:
            return
        findings = await self.inspect(side, [slot.text for slot in slots])
        for slot, of_text in zip(slots, findings, strict=True):
            counts.record(of_text)
            if any(finding.action == "redact" for finding in of_text):
                slot.replace(redacted(slot.text, of_text))


def _answer_slots(answer: Any) -> list[TextSlot]:
    """Return every text of a chat completion or completion that was not streamed."""
    slots = []
    for choice in answer.choices:
        message = getattr(choice, "message", None)
        if message is None:
            slots.append(attribute_slot(choice, "text"))
            continue
        names = ("content", "reasoning", "reasoning_content", "refusal")
        slots += [attribute_slot(message, name) for name in names if getattr(message, name, None)]
        for call in getattr(message, "tool_calls", None) or ():
            slots.append(attribute_slot(call.function, "arguments"))
    return slots


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
