"""Classify how a request ended."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from workbench.endpoints.connection import NO_KEY
from workbench.endpoints.failures import explain_answer, explain_failure

UNREACHABLE = "connection failed"
"""Start of the reason of a request that reached no server, or lost it."""

_TRANSPORTS = {"aiohttp", "anyio", "h11", "httpcore", "httpcore2", "httpx", "httpx2"}
_SHED = {429, 503}
_LONG_SECRET = 8
"""Characters from which on a secret is replaced even within a word."""
_QUOTE_LENGTH = 16
"""Characters of a prompt that count as a quotation of it."""


def ends_request(problem: BaseException) -> bool:
    """Return whether `problem` is how a request ended; False for a mistake in the call."""
    import openai

    kinds = (openai.OpenAIError, OSError, EOFError, asyncio.CancelledError)
    package = type(problem).__module__.partition(".")[0]
    return isinstance(problem, kinds) or package in _TRANSPORTS


def classify_failure(
    problem: BaseException, proxy: str | None = None
) -> tuple[Literal["error", "shed", "timeout", "cancelled"], str | None]:
    """Return the status and the reason of a request that ended with `problem`.

    Args:
        problem: How it ended.
        proxy: The proxy in use, without its password.
    """
    if isinstance(problem, asyncio.CancelledError):
        return "cancelled", None
    name, code = type(problem).__name__, getattr(problem, "status_code", None)
    if code is not None:
        headers = getattr(getattr(problem, "response", None), "headers", {})
        if reason := explain_answer(code, headers, proxy):
            return "error", reason
        body = getattr(problem, "body", None)
        message = body.get("message") if isinstance(body, Mapping) else problem
        return ("shed" if code in _SHED else "error"), f"{name}: HTTP {code}: {message}"
    if reason := explain_failure(problem, proxy):
        return "error", f"{UNREACHABLE}: {reason}"
    cause = problem.__cause__ or problem.__context__
    if name == "APIConnectionError" or _is_refused(problem):
        return "error", f"{UNREACHABLE}: {cause or problem}"
    detail = "" if cause is None else f" ({type(cause).__name__}: {cause})"
    late = any("Timeout" in kind.__name__ for kind in type(problem).__mro__)
    return ("timeout" if late else "error"), f"{name}: {problem}{detail}"


def _is_refused(problem: BaseException) -> bool:
    """Return whether a socket failed.

    The OpenAI client's aiohttp transport reports a refused connection as a timeout.
    """
    cause: BaseException | None = problem
    while cause is not None:
        if isinstance(cause, OSError) and not isinstance(cause, TimeoutError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def redact_error(reason: str, prompt: Any, secrets: Iterable[str]) -> str:
    """Return `reason` as one line of at most 200 characters, without secrets or the prompt.

    Servers repeat the request in their error messages, and a record must not contain its text.
    """
    for secret in secrets:
        reason = _without_secret(reason, secret)
    short = " ".join(reason.split())[:200]
    if any(_quotes(short, " ".join(text.split())) for text in _texts(prompt)):
        return f"{short.partition(':')[0]}: (the message quotes the prompt and is withheld)"
    return short


def _without_secret(text: str, secret: str) -> str:
    """Replace a secret: a long one anywhere, a short one only where it is a whole word.

    A short key such as "test" is also part of ordinary words.
    """
    if secret in ("", NO_KEY):
        return text
    if len(secret) >= _LONG_SECRET:
        return text.replace(secret, "[key]")
    return re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "[key]", text)


def _quotes(short: str, text: str) -> bool:
    if len(text) < _QUOTE_LENGTH:
        return any(f"{mark}{text}{mark}" in short for mark in "'\"")
    starts = range(len(short) - _QUOTE_LENGTH + 1)
    return any(short[start : start + _QUOTE_LENGTH] in text for start in starts)


def _texts(prompt: Any) -> Iterator[str]:
    if isinstance(prompt, str):
        yield prompt
    elif isinstance(prompt, Mapping):
        for value in prompt.values():
            yield from _texts(value)
    elif isinstance(prompt, Sequence):
        for value in prompt:
            yield from _texts(value)
