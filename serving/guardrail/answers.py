"""The texts of an answer's JSON, of every route."""

from __future__ import annotations

from typing import Any

from serving.guardrail.texts import TextSlot, number_text
from serving.guardrail.vocabulary import names

_STRUCTURAL_KEYS = names(
    """
    type role id call_id tool_call_id item_id response_id object model status signature
    finish_reason stop_reason stop_sequence container_id server_label created created_at index
    output_index content_index summary_index sequence_number start_index end_index phase
    system_fingerprint usage prompt_token_ids token_ids logprobs prompt_logprobs
    """
)
"""Keys whose values the engine sets, or repeats from the request."""

_ROOTS: dict[str, tuple[str, ...]] = {
    "/v1/chat/completions": ("choices",),
    "/v1/completions": ("choices",),
    "/v1/responses": ("output", "output_text", "output_messages"),
    "/v1/messages": ("content",),
    "/rerank": ("results",),
    "/v1/rerank": ("results",),
    "/v2/rerank": ("results",),
    "/detokenize": ("prompt",),
}
"""Where an answer has texts, by route. The rest repeats the request or consists of numbers."""


def answer_texts(path: str, answer: dict[str, Any]) -> tuple[list[TextSlot], list[TextSlot]]:
    """Return the texts of an answer that was not streamed.

    Returns:
        The texts that the model wrote, and the short ones: names, keys and numbers.
    """
    return texts_below(answer, _ROOTS.get(path, ()))


def texts_below(
    owner: dict[str, Any], names: tuple[str, ...] | None = None
) -> tuple[list[TextSlot], list[TextSlot]]:
    """Return the texts below some keys of an object, all keys by default.

    Returns:
        The texts that the model wrote, and the short ones: names, keys and numbers.
    """
    texts: list[TextSlot] = []
    details: list[TextSlot] = []
    for name in owner if names is None else names:
        if owner.get(name) is not None and name not in _STRUCTURAL_KEYS:
            _walk(owner, name, texts, details)
    return texts, details


def _walk(owner: Any, key: Any, texts: list[TextSlot], details: list[TextSlot]) -> None:
    value = owner[key]
    if isinstance(value, dict):
        for name in list(value):
            if name == "input":
                _walk_input(value, name, texts, details)
            elif name not in _STRUCTURAL_KEYS:
                _walk(value, name, texts, details)
    elif isinstance(value, list):
        for index in range(len(value)):
            _walk(value, index, texts, details)
    elif isinstance(value, str) and value:
        is_json = key in ("arguments", "partial_json")
        slots = details if key == "name" else texts
        slots.append(_slot(owner, key, value, is_json=is_json))


def _walk_input(owner: Any, key: Any, texts: list[TextSlot], details: list[TextSlot]) -> None:
    """Walk the arguments of a tool call: any JSON, whose keys and numbers are the model's too."""
    value = owner[key]
    if isinstance(value, dict):
        for name in list(value):
            _walk_input(value, name, texts, details)
            # After what is below it, because that is replaced under the old key.
            details.append(TextSlot(name, "a key", _key_setter(value, name)))
    elif isinstance(value, list):
        for index in range(len(value)):
            _walk_input(value, index, texts, details)
    elif isinstance(value, str):
        texts.append(_slot(owner, key, value))
    elif value is not None and not isinstance(value, bool):
        details.append(_slot(owner, key, number_text(value)))


def _slot(owner: Any, key: Any, text: str, *, is_json: bool = False) -> TextSlot:
    def store(replaced: str) -> None:
        owner[key] = replaced

    return TextSlot(text, str(key), store, is_json=is_json)


def _key_setter(owner: dict[str, Any], name: str) -> Any:
    def store(replaced: str) -> None:
        items = [(replaced if key == name else key, value) for key, value in owner.items()]
        owner.clear()
        owner.update(items)

    return store
