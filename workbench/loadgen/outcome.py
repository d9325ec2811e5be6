"""Classify how a request ended."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

UNREACHABLE = "connection failed"
"""Start of the reason of a request that reached no server, or lost it."""

_TRANSPORTS = {"aiohttp", "anyio", "h11", "httpcore", "httpcore2", "httpx", "httpx2"}
_SHED = {429, 503}
_QUOTE_LENGTH = 16
"""Characters of a prompt that count as a quotation of it."""


def ends_request(problem: BaseException) -> bool:
    """Return whether `problem` is how a request ended; False for a mistake in the call."""
    import openai

    kinds = (openai.OpenAIError, OSError, EOFError, asyncio.CancelledError)
    package = type(problem).__module__.partition(".")[0]
    return isinstance(problem, kinds) or package in _TRANSPORTS


def classify_failure(
    problem: BaseException,
) -> tuple[Literal["error", "shed", "timeout", "cancelled"], str | None]:
    """Return the status and the reason of a request that ended with `problem`."""
    if isinstance(problem, asyncio.CancelledError):
        return "cancelled", None
    name, code = type(problem).__name__, getattr(problem, "status_code", None)
    if code is not None:
        body = getattr(problem, "body", None)
        message = body.get("message") if isinstance(body, Mapping) else problem
        return ("shed" if code in _SHED else "error"), f"{name}: HTTP {code}: {message}"
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


def redact_error(reason: str, prompt: Any, api_key: str | None) -> str:
    """Return `reason` as one line of at most 200 characters, without the key or the prompt.

    Servers repeat the request in their error messages, and a record must not contain its text.
    """
    if api_key:
        reason = reason.replace(api_key, "[key]")
    short = " ".join(reason.split())[:200]
    if any(_quotes(short, " ".join(text.split())) for text in _texts(prompt)):
        return f"{short.partition(':')[0]}: (the message quotes the prompt and is withheld)"
    return short


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
