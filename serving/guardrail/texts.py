"""The texts of a request, wherever they are in its JSON, to be checked and replaced.

Every string is a text unless its position or its value is known to be structural, so unknown fields
are checked as well. Keys of objects and numbers are texts too: the model
reads them. What cannot be read at all (images, token ids, encrypted content, unknown kinds of
content) is listed by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

from serving.guardrail.vocabulary import (
    CONVERSATION_FIELDS,
    FREE_TEXT_FIELDS,
    ITEM_TYPES,
    LEAKING_ARGUMENTS,
    MEDIA_KEYS,
    NUMERIC_FIELDS,
    OPAQUE_FIELDS,
    PART_TYPES,
    ROLES,
    SCHEMA_FIELDS,
    TOOL_TYPES,
    WORDS,
)

_NAMED_ROLES = frozenset({"user", "system", "developer", "assistant"})
"""Roles whose ``name`` is a participant's; a tool message's is the function's."""
_SCHEMA_PROSE = frozenset({"description", "title", "$comment"})
_SCHEMA_DATA = frozenset({"enum", "const", "default", "examples", "example"})
_TEXT_KEYS = frozenset({"text", "refusal", "thinking", "reasoning", "reasoning_content"})
_IDENTIFIERS = frozenset(
    {"id", "call_id", "tool_call_id", "tool_use_id", "name", "tool_name", "namespace", "signature"}
)
"""Keys of messages, items and parts whose value refers to something else and cannot change."""


class TextSlot:
    """A text in a request or answer, which can be replaced there.

    Args:
        text: The text; a number as JSON writes it.
        field: Where it is, for error messages. It never contains any of the text.
        store: Replaces the text where it came from; None where a replacement would change the
            meaning, as in a key, a name or a regular expression.
        is_json: Whether the text is itself JSON, which must stay valid.
    """

    __slots__ = ("_store", "field", "is_json", "text")

    def __init__(
        self,
        text: str,
        field: str,
        store: Callable[[str], None] | None,
        *,
        is_json: bool = False,
    ) -> None:
        self.text = text
        self.field = field
        self.is_json = is_json
        self._store = store

    @property
    def replaceable(self) -> bool:
        """Whether the text may be replaced."""
        return self._store is not None

    def replace(self, text: str) -> None:
        """Replace the text, here and where it came from."""
        assert self._store is not None
        self.text = text
        self._store(text)


class RequestTexts:
    """A request's fields and its texts, extracted once for the guardrail and the router.

    Args:
        path: The route, such as ``/v1/chat/completions``.
        fields: The body. Replaced texts are changed in it.
    """

    def __init__(self, path: str, fields: dict[str, Any]) -> None:
        self.path = path
        self.fields = fields

    @property
    def conversation(self) -> list[TextSlot]:
        """The texts of the messages, prompts or inputs only, the last one last."""
        return self._conversation.texts

    @property
    def details(self) -> list[TextSlot]:
        """Every other text: tools, schemas, names, keys, parameters."""
        return self._conversation.details + self._parameters.texts + self._parameters.details

    @property
    def slots(self) -> list[TextSlot]:
        """Every text to check."""
        return self.conversation + self.details

    @property
    def split_texts(self) -> list[list[TextSlot]]:
        """The parts of each text that the model reads as one."""
        walker = self._conversation
        # The Messages API joins all system texts, wherever they are.
        return [parts for parts in (*walker.parts, walker.system) if len(parts) > 1]

    @property
    def unreadable(self) -> list[str]:
        """Names of what no guardrail can read, such as an image."""
        return self._conversation.unreadable + self._parameters.unreadable

    @property
    def has_token_ids(self) -> bool:
        """Whether a prompt is given as token ids or embeddings, which no guardrail reads."""
        return self._conversation.has_token_ids or self.fields.get("prompt_embeds") is not None

    @property
    def answer_leaking_arguments(self) -> list[str]:
        """Arguments in use that repeat the answer's text past the guardrail."""
        names = [name for name in LEAKING_ARGUMENTS if _in_use(self.fields.get(name))]
        if self.path == "/v1/responses":
            # A response that is generated in the background is fetched later, past the guardrail.
            names += [name for name in ("background",) if self.fields.get(name)]
            names += ["include"] if self.fields.get("include") else []
        return names

    @cached_property
    def _conversation(self) -> _Walker:
        walker = _Walker()
        for name in CONVERSATION_FIELDS:
            if self.fields.get(name) is not None and self._is_conversation(name):
                walker.conversation_field(self.fields, name)
        return walker

    @cached_property
    def _parameters(self) -> _Walker:
        walker = _Walker()
        for name, value in self.fields.items():
            if value is not None and not self._is_conversation(name):
                walker.parameter(self.fields, name)
        return walker

    def _is_conversation(self, name: str) -> bool:
        if name == "documents":
            return "messages" not in self.fields  # else they are an argument of the chat template
        # The Responses API's prompt is a reference to a stored template.
        return name in CONVERSATION_FIELDS and (name, self.path) != ("prompt", "/v1/responses")


def _in_use(value: Any) -> bool:
    """Return whether an argument has an effect; by identity: ``logprobs: 0`` reveals tokens too."""
    return value is not None and value is not False


class _Walker:
    """Collects the texts below some fields of a body."""

    def __init__(self) -> None:
        self.texts: list[TextSlot] = []
        self.details: list[TextSlot] = []
        self.parts: list[list[TextSlot]] = []
        self.system: list[TextSlot] = []
        self.unreadable: list[str] = []
        self.has_token_ids = False

    # Fields of the body

    def conversation_field(self, fields: dict[str, Any], name: str) -> None:
        """Walk messages, prompts or inputs."""
        value = fields[name]
        if name == "messages" and isinstance(value, list):
            self._each(value, name, self._message)
        elif name == "system":
            self._content(fields, name, name)
            self.system += self.texts
        elif isinstance(value, list):
            self._inputs(value, name)
        elif isinstance(value, dict):
            self._item(value, name)
        else:
            self._text(fields, name, name)

    def parameter(self, fields: dict[str, Any], name: str) -> None:
        """Walk a field that is not part of the conversation."""
        value = fields[name]
        if name == "model" and isinstance(value, str):
            return  # the gate compares it with the served models
        if name in OPAQUE_FIELDS:
            self.unreadable.append(name)
        elif name in NUMERIC_FIELDS and _is_numeric(value):
            return
        elif name == "tools" and isinstance(value, list):
            self._each(value, name, self._tool)
        elif name in SCHEMA_FIELDS:
            self._schema(fields, name, name)
        else:
            known = name in FREE_TEXT_FIELDS or name in NUMERIC_FIELDS or name in WORDS
            if not known:
                self._key(name, "the body")
            self._free(fields, name, name if known else "*", replaceable=name in FREE_TEXT_FIELDS)

    # Conversations

    def _each(
        self, values: list[Any], field: str, walk: Callable[[dict[str, Any], str], None]
    ) -> None:
        for index, value in enumerate(values):
            if isinstance(value, dict):
                walk(value, f"{field}[{index}]")
            else:
                self._free(values, index, f"{field}[{index}]", replaceable=True)

    def _inputs(self, values: list[Any], field: str) -> None:
        """Walk a list of texts, items or token ids."""
        for index, value in enumerate(values):
            place = f"{field}[{index}]"
            if isinstance(value, str):
                self._text(values, index, place)
            elif isinstance(value, dict):
                self._item(value, place)
            elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
                self._each(value, place, self._message)  # one conversation of a batch
            elif value is not None:
                self.has_token_ids = True

    def _message(self, message: dict[str, Any], field: str) -> None:
        first = len(self.texts)
        self._message_items(message, field)
        if message.get("role") == "system":
            self.system += self.texts[first:]

    def _message_items(self, message: dict[str, Any], field: str) -> None:
        for name, value in message.items():
            place = _below(field, name)
            if value is None:
                continue
            if name == "role":
                self._tag(value, ROLES, place)
            elif name == "content":
                self._content(message, name, place)
            elif name in _TEXT_KEYS:
                self._text(message, name, place)
            elif name == "name" and message.get("role") in _NAMED_ROLES:
                self._free(message, name, place, replaceable=True)
            elif name == "tool_calls" and isinstance(value, list):
                self._each(value, place, self._tool_call)
            elif name == "function_call" and isinstance(value, dict):
                self._tool_call(value, place)
            elif name == "tools" and isinstance(value, list):
                self._each(value, place, self._tool)
            else:
                self._extra(message, name, place)

    def _content(self, owner: dict[str, Any], name: str, field: str) -> None:
        """Walk a message's content: a text, or a list of parts."""
        value = owner[name]
        if not isinstance(value, list):
            self._text(owner, name, field)
            return
        first = len(self.texts)
        for index, part in enumerate(value):
            place = f"{field}[{index}]"
            if isinstance(part, dict):
                self._part(part, place)
            else:
                self._text(value, index, place)
        self.parts.append(self.texts[first:])

    def _part(self, part: dict[str, Any], field: str) -> None:
        kind = part.get("type")
        media = next((key for key in part if key in MEDIA_KEYS and part[key] is not None), None)
        if media or not (kind is None or (isinstance(kind, str) and kind in PART_TYPES)):
            self._cannot_read(field, media or kind)
            return
        for name, value in part.items():
            place = _below(field, name)
            if value is None or name == "type":
                continue
            if name in _TEXT_KEYS:
                self._text(part, name, place)
            elif name == "content":
                self._content(part, name, place)
            else:
                self._extra(part, name, place)

    def _item(self, item: dict[str, Any], field: str) -> None:
        """Walk an item of the Responses API, or an input of a pooling route."""
        kind = item.get("type")
        if kind is None or kind == "message":
            self._message(item, field)
            return
        if _is_one_of(kind, PART_TYPES):
            self._part(item, field)
            return
        if not _is_one_of(kind, ITEM_TYPES):
            self._cannot_read(field, kind)
            return
        for name, value in item.items():
            place = _below(field, name)
            if value is None or name == "type":
                continue
            if name in MEDIA_KEYS:
                self.unreadable.append(place)
            elif name in ("content", "summary", "output"):
                self._content(item, name, place)
            elif name == "arguments" and isinstance(value, str):
                self._text(item, name, place, is_json=True)
            elif name == "input" and isinstance(value, str):
                self._text(item, name, place)
            else:
                self._extra(item, name, place)

    def _tool_call(self, call: dict[str, Any], field: str) -> None:
        for name, value in call.items():
            place = _below(field, name)
            if isinstance(value, dict) and name in ("function", "custom"):
                self._tool_call(value, place)
            elif name == "arguments" and isinstance(value, str):
                self._text(call, name, place, is_json=True)
            elif name == "input" and isinstance(value, str):
                self._text(call, name, place)
            else:
                self._extra(call, name, place)

    def _cannot_read(self, field: str, kind: Any) -> None:
        label = kind if isinstance(kind, str) and kind in WORDS else "of this type"
        self.unreadable.append(f"{field} ({label})")

    def _extra(self, owner: dict[str, Any], name: str, field: str) -> None:
        """Walk a key that has no rule of its own."""
        self._key(name, field)
        self._free(owner, name, field, replaceable=name not in _IDENTIFIERS)

    # Tools, schemas and everything else

    def _tool(self, tool: dict[str, Any], field: str) -> None:
        kind = tool.get("type")
        if kind is None or (isinstance(kind, str) and kind in TOOL_TYPES):
            self._schema_items(tool, field, prose=True)
        else:
            self._cannot_read(field, kind)

    def _schema(self, owner: Any, key: Any, field: str, *, prose: bool = True) -> None:
        value = owner[key]
        if isinstance(value, dict):
            self._schema_items(value, field, prose=prose)
        elif isinstance(value, list):
            for index in range(len(value)):
                self._schema(value, index, f"{field}[{index}]", prose=prose)
        else:
            self._free(owner, key, field, replaceable=False)

    def _schema_items(self, schema: dict[str, Any], field: str, *, prose: bool) -> None:
        """Walk a schema. Its descriptions are prose, and the rest means something exactly so.

        Args:
            schema: The schema, or something that contains one.
            field: Where it is.
            prose: Whether descriptions may be replaced; not inside of a default or an enum.
        """
        for name, value in schema.items():
            place = _below(field, name)
            self._key(name, field)
            if prose and name in _SCHEMA_PROSE and isinstance(value, str):
                self._free(schema, name, place, replaceable=True)
            else:
                self._schema(schema, name, place, prose=prose and name not in _SCHEMA_DATA)

    def _free(self, owner: Any, key: Any, field: str, *, replaceable: bool) -> None:
        """Walk any JSON value: strings, numbers and keys are texts."""
        value = owner[key]
        if isinstance(value, dict):
            for name in value:
                place = _below(field, name)
                self._key(name, field)
                self._free(value, name, place, replaceable=replaceable)
        elif isinstance(value, list):
            for index in range(len(value)):
                self._free(value, index, f"{field}[{index}]", replaceable=replaceable)
        elif isinstance(value, str):
            self._detail(value, field, _item_setter(owner, key) if replaceable else None)
        elif value is not None and not isinstance(value, bool):
            text = number_text(value)
            self._detail(text, field, _item_setter(owner, key) if replaceable else None)

    def _text(self, owner: Any, key: Any, field: str, *, is_json: bool = False) -> None:
        value = owner[key]
        if isinstance(value, str):
            self.texts.append(TextSlot(value, field, _item_setter(owner, key), is_json=is_json))
        else:
            self._free(owner, key, field, replaceable=True)

    def _tag(self, value: Any, known: frozenset[str], field: str) -> None:
        if not (isinstance(value, str) and value in known):
            self._detail(str(value), field, None)

    def _key(self, name: str, field: str) -> None:
        if name not in WORDS:
            self.details.append(TextSlot(name, f"a key in {field.removesuffix('.*')}", None))

    def _detail(self, text: str, field: str, store: Callable[[str], None] | None) -> None:
        if text in WORDS:
            return
        self.details.append(TextSlot(text, field, store))
        if store is None:
            self.details += [TextSlot(view, field, None) for view in _unescaped(text)]


def _unescaped(text: str) -> Iterator[str]:
    """Yield what a regular expression or grammar matches where it escapes or joins literals."""
    if "\\" in text:
        yield re.sub(r"\\(.)", r"\1", text)
    if re.search(r'"\s+"', text):
        yield re.sub(r'"\s+"', "", text)


def number_text(value: int | float) -> str:
    """Return a number as a model reads it; 4e9 as its digits."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value)


def _is_numeric(value: Any) -> bool:
    """Return whether a value consists of numbers and booleans only; keys may be short numbers."""
    if isinstance(value, list):
        return all(_is_numeric(inner) for inner in value)
    if isinstance(value, dict):
        return all(
            re.fullmatch(r"\d{1,6}", name) and _is_numeric(inner) for name, inner in value.items()
        )
    return value is None or isinstance(value, int | float)


def _is_one_of(kind: Any, known: frozenset[str]) -> bool:
    return kind is None or (isinstance(kind, str) and kind in known)


def _below(field: str, name: str) -> str:
    """Return the name of a field inside of another; a key that is not known is not repeated."""
    return f"{field}.{name if name in WORDS else '*'}"


def _item_setter(container: Any, key: Any) -> Callable[[str], None]:
    def store(text: str) -> None:
        container[key] = text

    return store
