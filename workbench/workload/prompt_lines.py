"""The formats of the lines of a prompt file.

| format | recognized by |
| --- | --- |
| a text or a chat | `prompt` or `messages` |
| ShareGPT | `conversations`, with `from` and `value` |
| LMSYS-Chat, WildChat | `conversation`, with `role` and `content` |
| OpenAI batch | `body`, with the `url` of chat completions or completions |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec

from workbench.errors import SettingError
from workbench.workload.prompts import MAX_TOKENS

Message = dict[str, Any]
Tokens = Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)]
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "system": "system",
}
"""The roles of ShareGPT, LMSYS-Chat and WildChat."""
_BATCH_URLS = ("/v1/chat/completions", "/v1/completions")


class Body(msgspec.Struct):
    """The body of a request in an OpenAI batch."""

    prompt: str | list[int] | None = None
    messages: list[Message] | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    tools: list[Message] | None = None


class PromptLine(msgspec.Struct):
    """The fields that are read of a line. `output_tokens_count` is GuideLLM's name."""

    prompt: str | None = None
    messages: list[Message] | None = None
    output_tokens: Tokens | None = None
    output_tokens_count: Tokens | None = None
    tools: list[Message] | None = None
    conversations: list[Message] | None = None
    conversation: list[Message] | None = None
    body: Body | None = None
    url: str | None = None


class Chat(NamedTuple):
    """A request of a line, with the recorded answer if there is one.

    `recorded` is true for a conversation, whose answers should be in the file.
    """

    content: str | tuple[int, ...] | tuple[Message, ...]
    output_tokens: int | None = None
    tools: tuple[Message, ...] | None = None
    answer: str | None = None
    recorded: bool = False


class Left(Exception):
    """A line that is left out, and why."""


def chats_of(line: PromptLine, left_out: Counter[str], *, all_turns: bool) -> list[Chat]:
    """Return the requests of a line: one, or those of all turns of a conversation.

    Args:
        line: The line.
        left_out: Counts parts of messages that are left out.
        all_turns: Whether to return all turns of a conversation.

    Raises:
        Left: The line has nothing that can be sent.
        SettingError: A field is missing or wrong.
    """
    recorded = line.conversation if line.conversation is not None else line.conversations
    if recorded is not None:
        turns = _turns([_recorded_message(message) for message in recorded])
        return turns if all_turns else turns[:1]
    if line.body is not None:
        return [_batch_request(line.body, line.url, left_out)]
    if (line.prompt is None) == (line.messages is None):
        raise SettingError("give either the field 'prompt' or the field 'messages'")
    output = line.output_tokens or line.output_tokens_count
    if line.messages is None:
        return [Chat(line.prompt or "", output)]
    return [Chat(_messages(line.messages, left_out), output, _tuple(line.tools))]


def _recorded_message(message: Mapping[str, Any]) -> Message:
    role = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    if role not in _ROLES:
        raise Left(f"with the role {str(role)[:20]!r}")
    if not isinstance(content, str):
        raise SettingError("a message of the conversation has no text: add it")
    return {"role": _ROLES[role], "content": content}


def _turns(messages: Sequence[Message]) -> list[Chat]:
    """Return a request for each message of the user, with everything before it."""
    users = [i for i, message in enumerate(messages) if message["role"] == "user"]
    if not users:
        raise Left("without a message of the user")
    # Excerpts of conversations begin with an answer to nothing.
    head = [message for message in messages[: users[0]] if message["role"] == "system"]
    chats = []
    for i in users:
        if not messages[i]["content"].strip():
            break
        after = messages[i + 1] if i + 1 < len(messages) else None
        answer = after["content"] if after and after["role"] == "assistant" else None
        history = (*head, *messages[users[0] : i + 1])
        chats.append(Chat(history, answer=answer, recorded=True))
        if not answer:
            break
    if not chats:
        raise Left("with an empty message of the user")
    # A turn without an answer has no length; it is worth a request only on its own.
    return chats if chats[-1].answer or len(chats) == 1 else chats[:-1]


def _batch_request(body: Body, url: str | None, left_out: Counter[str]) -> Chat:
    if url is not None and url not in _BATCH_URLS:
        raise Left(f"for {url[:40]}")
    output = body.max_completion_tokens or body.max_tokens
    if body.messages is not None:
        return Chat(_messages(body.messages, left_out), output, _tuple(body.tools))
    if not body.prompt:
        raise SettingError("the field 'body' has neither 'messages' nor 'prompt': add one")
    return Chat(body.prompt if isinstance(body.prompt, str) else tuple(body.prompt), output)


def _messages(messages: Sequence[Message], left_out: Counter[str]) -> tuple[Message, ...]:
    for name in ("role", "content"):
        if not messages or any(
            name not in message and not message.get("tool_calls") for message in messages
        ):
            raise SettingError(
                f"the field 'messages' has no message, or one without {name!r}: add it"
            )
    return tuple(_message(message, left_out) for message in messages)


def _message(message: Message, left_out: Counter[str]) -> Message:
    """Return a message as it is sent: its texts, the calls of tools, and its content as a text."""
    content = message.get("content")
    kept = {name: value for name, value in message.items() if isinstance(value, str)}
    calls = message.get("tool_calls")
    if calls:
        kept["tool_calls"] = calls
    if isinstance(content, list):
        kept["content"] = _text_of(content, left_out)
    elif calls and content is None:
        kept["content"] = ""
    elif not isinstance(content, str):
        raise SettingError(
            "Expected `str` or an array of parts as the content of a message - at `$.messages`"
        )
    if not isinstance(kept.get("role"), str):
        raise SettingError("Expected `str` as the role of a message - at `$.messages`")
    return kept


def _text_of(parts: Sequence[Any], left_out: Counter[str]) -> str:
    """Return the texts of content parts, joined by line breaks as vLLM does; count the others."""
    texts = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            left_out[f"parts of the type {str(kind)[:20]!r}"] += 1
    if not texts:
        raise Left("with a message without text")
    return "\n".join(texts)


def _tuple(items: Sequence[Message] | None) -> tuple[Message, ...] | None:
    return tuple(items) if items else None
