"""The texts of an OpenAI request, wherever they stand, to be looked at and replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

TELLTALE = (
    "logprobs",
    "prompt_logprobs",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "echo",
)
"""Arguments that have the answer's text told a second time, where no guardrail looks."""


class Place(NamedTuple):
    """A text in a request, and how to put another in its stead."""

    text: str
    replace: Callable[[str], None]


def places(body: Any) -> list[Place]:
    """Every text in the messages or prompts of a chat or completion request."""
    messages = getattr(body, "messages", None)
    if messages is not None:
        return [place for message in messages for place in _of_message(message)]
    return list(_of_prompt(body))


def has_token_ids(body: Any) -> bool:
    """Whether a prompt is given as token ids or vectors, which no guardrail reads."""
    prompt = getattr(body, "prompt", None)
    listed = isinstance(prompt, list) and any(not isinstance(one, str) for one in prompt)
    return listed or getattr(body, "prompt_embeds", None) is not None


def telltales(body: Any) -> list[str]:
    """Arguments in use that tell an answer's text past the guardrail."""
    told = {name: getattr(body, name, None) for name in TELLTALE}
    # By identity: a completion's logprobs = 0 tells the tokens too.
    return [name for name, value in told.items() if value is not None and value is not False]


def _of_message(message: Any) -> Iterator[Place]:
    for name in ("content", "reasoning", "reasoning_content", "refusal", "name"):
        value = message.get(name)
        if isinstance(value, str):
            yield _at(message, name)
        elif value is not None and name == "content":
            # Given as an iterator where pydantic could not know its kind.
            message[name] = parts = list(value)
            yield from (_at(part, "text") for part in parts if isinstance(part.get("text"), str))
    message_calls = message.get("tool_calls")
    if message_calls is not None:
        message["tool_calls"] = calls = list(message_calls)
        yield from (_at(call["function"], "arguments") for call in calls if "function" in call)


def _of_prompt(body: Any) -> Iterator[Place]:
    prompt = body.prompt
    if isinstance(prompt, str):
        yield Place(prompt, lambda text: setattr(body, "prompt", text))
    elif isinstance(prompt, list):
        yield from (_at(prompt, number) for number in range(len(prompt)))
    if isinstance(getattr(body, "suffix", None), str):
        yield Place(body.suffix, lambda text: setattr(body, "suffix", text))


def _at(holder: Any, key: Any) -> Place:
    return Place(holder[key], lambda text: holder.__setitem__(key, text))
