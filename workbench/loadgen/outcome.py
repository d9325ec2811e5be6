"""Classify how a request ended."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

_TRANSPORTS = {"aiohttp", "anyio", "h11", "httpcore", "httpcore2", "httpx", "httpx2"}


_SHED = {429, 503}


UNREACHABLE = "connection failed"
"""How the reason of a request begins that reached no server, or lost it."""


_QUOTE = 16


def ends_request(problem: BaseException) -> bool:
    """Whether `problem` says how a request ended. A mistake in the call does not: raise it."""
    import openai

    kinds = (openai.OpenAIError, OSError, EOFError, asyncio.CancelledError)
    package = type(problem).__module__.partition(".")[0]
    return isinstance(problem, kinds) or package in _TRANSPORTS


def classify_failure(
    problem: BaseException,
) -> tuple[Literal["error", "shed", "timeout", "cancelled"], str | None]:
    """The status and the reason of a request that ended with `problem`."""
    if isinstance(problem, asyncio.CancelledError):
        return "cancelled", None
    name, code = type(problem).__name__, getattr(problem, "status_code", None)
    if code is not None:
        body = getattr(problem, "body", None)
        message = body.get("message") if isinstance(body, Mapping) else problem
        return ("shed" if code in _SHED else "error"), f"{name}: HTTP {code}: {message}"
    beneath = problem.__cause__ or problem.__context__
    if name == "APIConnectionError" or _refused(problem):
        return "error", f"{UNREACHABLE}: {beneath or problem}"
    below = "" if beneath is None else f" ({type(beneath).__name__}: {beneath})"
    late = any("Timeout" in kind.__name__ for kind in type(problem).__mro__)
    return ("timeout" if late else "error"), f"{name}: {problem}{below}"


def _refused(problem: BaseException) -> bool:
    """Whether a socket failed beneath it. The OpenAI client's aiohttp transport calls a refused
    connection a timeout.
    """
    beneath: BaseException | None = problem
    while beneath is not None:
        if isinstance(beneath, OSError) and not isinstance(beneath, TimeoutError):
            return True
        beneath = beneath.__cause__ or beneath.__context__
    return False


def redact_error(reason: str, prompt: Any, api_key: str | None) -> str:
    """`reason` on one line of at most 200 characters that quotes neither the key nor the prompt.

    Servers repeat the request in their error messages, and a record must not hold its text.
    """
    if api_key:
        reason = reason.replace(api_key, "[key]")
    short = " ".join(reason.split())[:200]
    if any(_quotes(short, " ".join(text.split())) for text in _texts(prompt)):
        return f"{short.partition(':')[0]}: (the message quotes the prompt and is withheld)"
    return short


def _quotes(short: str, text: str) -> bool:
    if len(text) < _QUOTE:
        return any(f"{mark}{text}{mark}" in short for mark in "'\"")
    return any(short[i : i + _QUOTE] in text for i in range(len(short) - _QUOTE + 1))


def _texts(prompt: Any) -> Iterator[str]:
    if isinstance(prompt, str):
        yield prompt
    elif isinstance(prompt, Mapping):
        for value in prompt.values():
            yield from _texts(value)
    elif isinstance(prompt, Sequence):
        for value in prompt:
            yield from _texts(value)
