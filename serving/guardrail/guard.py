"""The guardrail as the ingress sees it: look at a request's texts, and at an answer's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from serving.errors import WorkbenchError
from serving.guardrail.findings import Finding, FindingCounts, blocked, redacted
from serving.guardrail.texts import Place, has_token_ids, places, telltales
from serving.spec.guardrail import GuardEndpoint, GuardModel, PresidioGuardrail, Side

Check = Callable[[Side, Sequence[str]], Awaitable[list[list[Finding]]]]
"""The findings in each of some texts of one side."""

UNCHECKED = "not_with_guardrail"


class RefusedError(WorkbenchError):
    """A request or answer that is not let pass; the message never has a text of theirs."""

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
            f"The guardrail blocked this {side}: it holds {', '.join(entities)}.", "content_blocked"
        )
        self.kind = "content_blocked"


class Guard:
    """One pipeline's guardrail: which sides it looks at, and what looks."""

    def __init__(self, spec: PresidioGuardrail | GuardModel | GuardEndpoint, check: Check) -> None:
        self.spec = spec
        self._check = check

    async def prompt(self, body: Any, tally: FindingCounts) -> None:
        """Redact the texts of a request in place.

        Raises:
            RefusedError: it is blocked, or has texts or arguments that get past a guardrail.
        """
        self._answerable(body)
        if "prompt" in self.spec.sides:
            if has_token_ids(body):
                raise RefusedError(
                    "The guardrail cannot read a prompt of token ids. Send it as text.", UNCHECKED
                )
            await self._replace("prompt", places(body), tally)

    async def answer(self, answer: Any, tally: FindingCounts) -> None:
        """Redact the texts of a whole answer in place.

        Raises:
            BlockedError: the answer is blocked.
        """
        if "answer" in self.spec.sides:
            await self._replace("answer", _said(answer), tally)

    async def look(self, side: Side, texts: Sequence[str]) -> list[list[Finding]]:
        """The findings in each text.

        Raises:
            BlockedError: one of them is blocked.
            RefusedError: the guardrail does not answer; nothing passes that it has not seen.
        """
        try:
            found = await self._check(side, texts)
        except Exception as error:
            raise RefusedError(
                f"The guardrail does not answer ({type(error).__name__}). Try again later.",
                "guardrail_unavailable",
                503,
            ) from None
        if entities := blocked(one for findings in found for one in findings):
            raise BlockedError(side, entities)
        return found

    async def _replace(self, side: Side, found: Sequence[Place], tally: FindingCounts) -> None:
        filled = [place for place in found if place.text.strip()]
        if not filled:
            return
        every = await self.look(side, [place.text for place in filled])
        for place, findings in zip(filled, every, strict=True):
            tally.note(findings)
            if any(one.action == "redact" for one in findings):
                place.replace(redacted(place.text, findings))

    def _answerable(self, body: Any) -> None:
        told = telltales(body) if "answer" in self.spec.sides else []
        if told:
            raise RefusedError(
                f"{', '.join(told)} would tell the answer past the guardrail. Leave it out.",
                UNCHECKED,
            )


def _said(answer: Any) -> list[Place]:
    """Every text of a chat completion or completion that was not streamed."""
    found = []
    for choice in answer.choices:
        message = getattr(choice, "message", None)
        if message is None:
            found.append(_attribute(choice, "text"))
            continue
        names = ("content", "reasoning", "reasoning_content", "refusal")
        found += [_attribute(message, name) for name in names if getattr(message, name, None)]
        for call in getattr(message, "tool_calls", None) or ():
            found.append(_attribute(call.function, "arguments"))
    return found


def _attribute(holder: Any, name: str) -> Place:
    return Place(getattr(holder, name) or "", lambda text: setattr(holder, name, text))


class MicroBatcher:
    """Texts of many requests in few calls: what comes while ``limit`` calls run shares the next.

    A call to another deployment costs more than a look at a short text does.
    """

    def __init__(
        self, call: Callable[[list[str]], Awaitable[list[list[Finding]]]], limit: int
    ) -> None:
        self._call, self._limit = call, limit
        self._waiting: list[tuple[Sequence[str], asyncio.Future[list[list[Finding]]]]] = []
        self._running: set[asyncio.Task[None]] = set()

    async def __call__(self, side: Side, texts: Sequence[str]) -> list[list[Finding]]:
        """The findings in each text."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((texts, turn))
        self._start()
        found: list[list[Finding]] = await turn
        return found

    def _start(self) -> None:
        if self._waiting and len(self._running) < self._limit:
            batch, self._waiting = self._waiting, []
            task = asyncio.create_task(self._run(batch))
            self._running.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._start()

    async def _run(
        self, batch: list[tuple[Sequence[str], asyncio.Future[list[list[Finding]]]]]
    ) -> None:
        try:
            found = iter(await self._call([text for texts, _ in batch for text in texts]))
        except Exception as error:
            for _, turn in batch:
                if not turn.done():
                    turn.set_exception(error)
            return
        for texts, turn in batch:
            own = [next(found) for _ in texts]
            if not turn.done():  # done: its client went away
                turn.set_result(own)
