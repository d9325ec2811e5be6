"""The texts of an OpenAI request, wherever they are, to be checked and replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

LEAKING_ARGUMENTS = (
    "logprobs",
    "prompt_logprobs",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "echo",
)
"""Arguments that repeat the answer's text where the guardrail does not check it."""


class TextSlot:
    """A text in a request or answer, which can be replaced there."""

    def __init__(self, text: str, store: Callable[[str], None]) -> None:
        self.text = text
        self._store = store

    def replace(self, text: str) -> None:
        """Replace the text, here and where it came from."""
        self.text = text
        self._store(text)


class RequestTexts:
    """An OpenAI request's body and its texts, extracted once for the guardrail and the router."""

    def __init__(self, body: Any) -> None:
        self.body = body

    @cached_property
    def slots(self) -> list[TextSlot]:
        """Every text in the messages or prompts, the last one last."""
        messages = getattr(self.body, "messages", None)
        if messages is not None:
            return [slot for message in messages for slot in _message_slots(message)]
        return list(_prompt_slots(self.body))

    @property
    def has_token_ids(self) -> bool:
        """Whether a prompt is given as token ids or embeddings, which no guardrail reads."""
        prompt = getattr(self.body, "prompt", None)
        not_text = isinstance(prompt, list) and any(not isinstance(part, str) for part in prompt)
        return not_text or getattr(self.body, "prompt_embeds", None) is not None

    @property
    def answer_leaking_arguments(self) -> list[str]:
        """Arguments in use that repeat the answer's text past the guardrail."""
        values = {name: getattr(self.body, name, None) for name in LEAKING_ARGUMENTS}
        # By identity: a completion's logprobs = 0 reveals the tokens too.
        return [name for name, value in values.items() if value is not None and value is not False]


def _message_slots(message: Any) -> Iterator[TextSlot]:
    for name in ("content", "reasoning", "reasoning_content", "refusal", "name"):
        value = message.get(name)
        if isinstance(value, str):
            yield _item_slot(message, name)
        elif value is not None and name == "content":
            # pydantic gives an iterator where it could not know the element's type.
            message[name] = parts = list(value)
            yield from (
                _item_slot(part, "text") for part in parts if isinstance(part.get("text"), str)
            )
    tool_calls = message.get("tool_calls")
    if tool_calls is not None:
        message["tool_calls"] = calls = list(tool_calls)
        yield from (
            _item_slot(call["function"], "arguments") for call in calls if "function" in call
        )


def _prompt_slots(body: Any) -> Iterator[TextSlot]:
    prompt = body.prompt
    if isinstance(prompt, str):
        yield attribute_slot(body, "prompt")
    elif isinstance(prompt, list):
        yield from (_item_slot(prompt, index) for index in range(len(prompt)))
    if isinstance(getattr(body, "suffix", None), str):
        yield attribute_slot(body, "suffix")


def _item_slot(container: Any, key: Any) -> TextSlot:
    return TextSlot(container[key], lambda text: container.__setitem__(key, text))


def attribute_slot(owner: Any, name: str) -> TextSlot:
    """Return the slot of a text that is an attribute; an empty text if it is None."""
    return TextSlot(getattr(owner, name) or "", lambda text: setattr(owner, name, text))
