"""A guard model as the guardrail: a classifier's prompt, and how its answer is read."""

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
"""Sends the fields of a chat or completion request to the guard model; returns its answer."""

UNSAFE, UNCLEAR = "UNSAFE", "UNCLEAR"


class GuardModelClient:
    """Asks a guard model about each text.

    Args:
        spec: How the model is asked, and how its answer is read.
        ask: Sends one request.
        limit: Requests in progress at once.
    """

    def __init__(self, spec: GuardModel | GuardEndpoint, ask: Ask, limit: int = 64) -> None:
        self._spec, self._ask = spec, ask
        self._slots = asyncio.Semaphore(limit)

    async def __call__(self, side: Side, texts: Sequence[str]) -> list[list[Finding]]:
        """Return for each text one finding per violated category; each covers the whole text."""
        return list(await asyncio.gather(*(self._inspect(side, text) for text in texts)))

    async def _inspect(self, side: Side, text: str) -> list[Finding]:
        if not text.strip():
            return []
        async with self._slots:
            try:
                async with asyncio.timeout(self._spec.timeout_s):
                    answer = await self._ask(self._request(side, text))
            except TimeoutError:
                answer = ""
        names = violated_categories(self._spec.verdict, answer)
        return [Finding(0, len(text), name, 1.0, self._spec.action) for name in names]

    def _request(self, side: Side, text: str) -> dict[str, Any]:
        fields = {"max_tokens": self._spec.max_tokens, "temperature": 0.0}
        template = self._spec.template
        if template is None:
            return {"messages": [{"role": ROLES[side], "content": text}]} | fields
        # The text comes last, so that a {role} in it is not replaced.
        return {"prompt": template.replace("{role}", ROLES[side]).replace("{text}", text)} | fields


def violated_categories(answer_format: GuardAnswerFormat, answer: str) -> list[str]:
    """Return the categories that a guard model's answer names, UNSAFE, UNCLEAR, or nothing."""
    if re.search(answer_format.unsafe, answer):
        return sorted(set(re.findall(answer_format.categories, answer))) or [UNSAFE]
    if re.search(answer_format.safe, answer):
        return []
    return [UNCLEAR] if answer_format.unclear == "block" else []


def endpoint_client(spec: GuardEndpoint) -> Ask:
    """Return a function that asks another OpenAI-compatible endpoint."""
    from openai import AsyncOpenAI

    key = os.environ.get(spec.key_variable, "") if spec.key_variable else ""
    client = AsyncOpenAI(base_url=spec.base_url, api_key=key or "none", timeout=spec.timeout_s)

    async def ask(fields: dict[str, Any]) -> str:
        if "messages" in fields:
            chat = await client.chat.completions.create(model=spec.model_id, **fields)
            return chat.choices[0].message.content or ""
        return str((await client.completions.create(model=spec.model_id, **fields)).choices[0].text)

    return ask
