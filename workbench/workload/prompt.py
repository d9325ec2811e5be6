"""What is sent in one request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workbench.errors import SettingError


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request: text or token ids for `/v1/completions`, or the messages of a chat.

    `prompt_tokens` is what the server will count and `max_tokens` the length to request. For a
    conversation, `conversation` is its number, `turn` counts from 0, and `think_s` is the wait in
    seconds after the turn before. A first turn has a wait only for a user of a closed loop.
    """

    content: str | tuple[int, ...] | tuple[dict[str, Any], ...]
    prompt_tokens: int
    max_tokens: int
    conversation: int | None = None
    turn: int = 0
    think_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ToolPrompt(Prompt):
    """A chat with tools. Of another class, so that the digests of plans without tools are kept."""

    tools: tuple[dict[str, Any], ...] = ()


def check_context(fields: str, tokens: int, max_model_len: int | None) -> None:
    """Check that `tokens`, of the named fields together, fit into the model's context.

    Raises:
        SettingError: They do not.
    """
    if max_model_len is not None and tokens > max_model_len:
        raise SettingError(
            f"{fields} can make {tokens} tokens together, beyond max_model_len = {max_model_len}; "
            "lower one of them"
        )
