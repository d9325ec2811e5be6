"""A guard model in the guardrail's place: a classifier's prompt, and how its answer is read."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from serving.guardrail.findings import Finding
from serving.spec.guardrail import GuardAnswerFormat, GuardEndpoint, GuardModel, Side

ROLES: dict[Side, str] = {"prompt": "user", "answer": "assistant"}

Ask = Callable[[dict[str, Any]], Awaitable[str]]
"""Sends a chat or completion request's fields to the guard model; returns what it said."""

UNSAFE, UNCLEAR = "UNSAFE", "UNCLEAR"


class GuardModelClient:
    """Asks a guard model about each text, at most ``limit`` at a time."""

    def __init__(self, spec: GuardModel | GuardEndpoint, ask: Ask, limit: int = 64) -> None:
        self._spec, self._ask = spec, ask
        self._turns = asyncio.Semaphore(limit)

    async def __call__(self, side: Side, texts: Sequence[str]) -> list[list[Finding]]:
        """For each text nothing, or one finding that covers it, for each category named."""
        return list(await asyncio.gather(*(self._one(side, text) for text in texts)))

    async def _one(self, side: Side, text: str) -> list[Finding]:
        if not text.strip():
            return []
        async with self._turns:
            try:
                async with asyncio.timeout(self._spec.timeout_s):
                    said = await self._ask(self._request(side, text))
            except TimeoutError:
                said = ""
        found = categories(self._spec.verdict, said)
        return [Finding(0, len(text), name, 1.0, self._spec.action) for name in found]

    def _request(self, side: Side, text: str) -> dict[str, Any]:
        fields = {"max_tokens": self._spec.max_tokens, "temperature": 0.0}
        template = self._spec.template
        if template is None:
            return {"messages": [{"role": ROLES[side], "content": text}]} | fields
        # The text last, so that a {role} in it stays what it is.
        return {"prompt": template.replace("{role}", ROLES[side]).replace("{text}", text)} | fields


def categories(verdict: GuardAnswerFormat, said: str) -> list[str]:
    """What an answer accuses a text of: nothing, its categories, UNSAFE, or UNCLEAR."""
    if re.search(verdict.unsafe, said):
        return sorted(set(re.findall(verdict.categories, said))) or [UNSAFE]
    if re.search(verdict.safe, said):
        return []
    return [UNCLEAR] if verdict.unclear == "block" else []


def asks_endpoint(spec: GuardEndpoint) -> Ask:
    """Asks another OpenAI-compatible endpoint."""
    from openai import AsyncOpenAI

    key = os.environ.get(spec.key_variable, "") if spec.key_variable else ""
    client = AsyncOpenAI(base_url=spec.base_url, api_key=key or "none", timeout=spec.timeout_s)

    async def ask(fields: dict[str, Any]) -> str:
        if "messages" in fields:
            chat = await client.chat.completions.create(model=spec.model_id, **fields)
            return chat.choices[0].message.content or ""
        return str((await client.completions.create(model=spec.model_id, **fields)).choices[0].text)

    return ask
