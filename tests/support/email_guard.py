"""A guardrail that finds one e-mail address, and chat requests for it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from serving.guardrail.findings import Finding
from serving.guardrail.guard import Guard
from serving.spec.guardrail import PresidioGuardrail, Side

EMAIL = "jane.roe@example.com"


def find_email(text: str) -> list[Finding]:
    """Find the one e-mail address, wherever it is."""
    starts = [match.start() for match in re.finditer(re.escape(EMAIL), text)]
    return [Finding(at, at + len(EMAIL), "EMAIL_ADDRESS", 1.0, "redact") for at in starts]


async def finds_emails(side: Side, texts: Sequence[str]) -> list[list[Finding]]:
    return [find_email(text) for text in texts]


async def blocks_emails(side: Side, texts: Sequence[str]) -> list[list[Finding]]:
    return [[finding._replace(action="block") for finding in find_email(text)] for text in texts]


GUARD = Guard(PresidioGuardrail(hold_back_chars=24, step_chars=8), finds_emails)


CHAT = "/v1/chat/completions"


def chat(*contents: Any, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": content} for content in contents]
    return {"model": "m", "messages": messages} | fields
