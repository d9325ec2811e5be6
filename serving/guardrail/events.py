"""The event formats of streamed answers: where their text is, and when it ends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from serving.guardrail.answers import texts_below
from serving.guardrail.texts import TextSlot

TextKey = tuple[Any, ...]
"""Identifies one text of an answer, such as the arguments of its second tool call."""


@dataclass(slots=True)
class Text:
    """The next part of a text, and the event that carries it, without the text."""

    key: TextKey
    text: str
    template: dict[str, Any]
    is_json: bool = False


@dataclass(slots=True)
class Flush:
    """The end of the texts whose keys ``ends`` accepts."""

    ends: Callable[[TextKey], bool]


@dataclass(slots=True)
class Send:
    """An event to send, and the texts in it that have to be checked as they are."""

    event: dict[str, Any]
    texts: list[TextSlot] = field(default_factory=list)
    details: list[TextSlot] = field(default_factory=list)


Step = Text | Flush | Send


class EventFormat(ABC):
    """How one route streams its answer."""

    has_names = False
    """Whether each event has a line ``event:`` with its type."""
    repeats_texts = False
    """Whether later events repeat the texts that were streamed."""

    @abstractmethod
    def steps(self, event: dict[str, Any]) -> Iterator[Step]:
        """Yield what one event of the model means, in order."""

    @abstractmethod
    def event(self, key: TextKey, text: str, template: dict[str, Any]) -> dict[str, Any]:
        """Return the event that carries ``text``."""


def _send(event: dict[str, Any], below: dict[str, Any] | None = None) -> Send:
    """Return the step that sends an event and checks its texts, all or those of one object."""
    return Send(event, *texts_below(event if below is None else below))


class ChatEvents(EventFormat):
    """Chunks of chat completions and completions. A key is a choice, a name and a tool call."""

    def steps(self, event: dict[str, Any]) -> Iterator[Step]:
        """Yield what one chunk means."""
        choices = event.get("choices")
        if not choices:
            yield Send(event)
            return
        template = {name: event[name] for name in event if name not in ("choices", "usage")}
        for choice in choices:
            yield from _chat_texts(choice, template)
            index, ends = choice["index"], choice.get("finish_reason") is not None
            if ends:
                yield Flush(_starts_with(index))
            if ends or _has_more(choice.get("delta")):
                yield _send(event | {"choices": [choice]}, choice)

    def event(self, key: TextKey, text: str, template: dict[str, Any]) -> dict[str, Any]:
        """Return the chunk that carries ``text``."""
        index, name, call = key
        if name == "text":
            choice: dict[str, Any] = {"index": index, "text": text, "finish_reason": None}
        else:
            delta: dict[str, Any] = {name: text}
            if name == "function_call":
                delta = {name: {"arguments": text}}
            elif name == "tool_calls":
                delta = {name: [{"index": call, "function": {"arguments": text}}]}
            choice = {"index": index, "delta": delta, "finish_reason": None}
        return template | {"choices": [choice]}


def _starts_with(index: Any) -> Callable[[TextKey], bool]:
    return lambda key: key[0] == index


_CHAT_TEXTS = ("content", "reasoning", "reasoning_content", "refusal")


def _chat_texts(choice: dict[str, Any], template: dict[str, Any]) -> Iterator[Text]:
    """Take the streamed texts out of a choice."""
    index, delta = choice["index"], choice.get("delta")
    if delta is None:
        text = choice.get("text")
        choice["text"] = ""
        if text:
            yield Text((index, "text", 0), text, template)
        return
    for name in _CHAT_TEXTS:
        if isinstance(delta.get(name), str) and delta[name]:
            yield Text((index, name, 0), delta.pop(name), template)
    functions = [
        ((index, "tool_calls", call["index"]), call.get("function") or {})
        for call in delta.get("tool_calls") or ()
    ]
    functions.append(((index, "function_call", 0), delta.get("function_call") or {}))
    for key, function in functions:
        if function.get("arguments"):
            yield Text(key, function["arguments"], template, is_json=True)
            function["arguments"] = ""


def _has_more(delta: dict[str, Any] | None) -> bool:
    """Return whether a delta has anything besides the texts taken out of it."""
    if delta is None:
        return False
    calls = delta.get("tool_calls") or ()
    function = delta.get("function_call") or {}
    return (
        any(value for name, value in delta.items() if name not in ("tool_calls", "function_call"))
        or any(call.get("id") or (call.get("function") or {}).get("name") for call in calls)
        or bool(function.get("name"))
    )


class ResponsesEvents(EventFormat):
    """Events of the Responses API. A key is an event's type, an item, and a part of it.

    Events at the end of a part, of an item and of the response repeat the whole text.
    """

    has_names = True
    repeats_texts = True

    def steps(self, event: dict[str, Any]) -> Iterator[Step]:
        """Yield what one event means."""
        kind = str(event.get("type", ""))
        if kind.endswith(".delta") and isinstance(event.get("delta"), str):
            key = (kind, event.get("output_index"), event.get("item_id"), _part(event))
            yield Text(key, event["delta"], event, is_json="arguments" in kind)
        elif kind == "error" or "error" in event:
            yield Send(event)
        elif isinstance(event.get("response"), dict):
            if kind not in ("response.created", "response.queued", "response.in_progress"):
                yield Flush(lambda key: True)
            response = event["response"]
            yield Send(event, *texts_below(response, ("output", "output_messages")))
        else:
            index = event.get("output_index")
            yield Flush(lambda key: key[1] == index)
            yield _send(event)

    def event(self, key: TextKey, text: str, template: dict[str, Any]) -> dict[str, Any]:
        """Return the event that carries ``text``."""
        without_tokens: dict[str, Any] = {"logprobs": []} if "logprobs" in template else {}
        return template | {"delta": text} | without_tokens


def _part(event: dict[str, Any]) -> Any:
    return event.get("content_index", event.get("summary_index"))


class MessagesEvents(EventFormat):
    """Events of Anthropic's Messages API. A key is a content block and the type of its deltas."""

    has_names = True

    _TEXTS: ClassVar = {
        "text_delta": "text",
        "thinking_delta": "thinking",
        "input_json_delta": "partial_json",
    }
    """Where each type of delta has its text."""

    def steps(self, event: dict[str, Any]) -> Iterator[Step]:
        """Yield what one event means."""
        kind, index, delta = event.get("type"), event.get("index"), event.get("delta") or {}
        name = self._TEXTS.get(delta.get("type", ""))
        if name is not None and isinstance(delta.get(name), str):
            key = (index, delta["type"])
            yield Text(key, delta[name], event, is_json=name == "partial_json")
        elif kind in ("ping", "error"):
            yield Send(event)
        elif kind in ("message_start", "message_delta", "message_stop"):
            yield Flush(lambda key: True)
            yield Send(event, *texts_below(event.get("message") or {}, ("content",)))
        else:
            yield Flush(_starts_with(index))
            yield _send(event)

    def event(self, key: TextKey, text: str, template: dict[str, Any]) -> dict[str, Any]:
        """Return the event that carries ``text``."""
        name = self._TEXTS[key[1]]
        return template | {"delta": template["delta"] | {name: text}}
