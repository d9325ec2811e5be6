"""Which requests vLLM's Rust front end answers, and what it is sent.

It accepts unknown fields silently, so these are lists of what it was compared with vLLM's own
server for (``tests/integration/test_rust_frontend.py``). Only streams are on them: the tokens of a
whole answer could not be charged if its client disconnected before the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NAMES = """
    model stream stream_options max_tokens temperature top_p top_k min_p seed stop stop_token_ids
    frequency_penalty presence_penalty repetition_penalty ignore_eos min_tokens
    include_stop_str_in_output user n
    """
_SAMPLING = frozenset(_NAMES.split())
FIELDS = {
    "/v1/chat/completions": _SAMPLING | {"messages", "max_completion_tokens"},
    "/v1/completions": _SAMPLING | {"prompt"},
}
"""The fields that a request may have, by route."""
ROLES = ("system", "user", "assistant")
USAGE = {"include_usage": True, "continuous_usage_stats": True}
"""``stream_options`` with which every event has the tokens so far."""


def is_supported(path: str, fields: Mapping[str, Any], model: str) -> bool:
    """Return whether the Rust front end answers a request as vLLM's own server does.

    A field that is null is not the same as one that is left out: vLLM's own server takes a
    completion's ``max_tokens`` of null for no limit. Such requests go to it, and so do prompts of
    token ids: the Rust front end does not check that the model has them.

    Args:
        path: The route.
        fields: The body.
        model: The only name that the Rust front end knows, which a body may leave out.
    """
    return (
        fields.get("stream") is True
        and fields.keys() <= FIELDS.get(path, frozenset())
        and None not in fields.values()
        and fields.get("model", model) == model
        and fields.get("n", 1) == 1
        and _asks_for_one_usage(fields.get("stream_options", {}))
        and (_is_chat(fields.get("messages")) or _is_filled_text(fields.get("prompt")))
    )


def _asks_for_one_usage(options: Any) -> bool:
    return isinstance(options, dict) and options.keys() <= {"include_usage"}


def _is_chat(messages: Any) -> bool:
    return isinstance(messages, list) and bool(messages) and all(map(_is_text, messages))


def _is_text(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and message.keys() == {"role", "content"}
        and message["role"] in ROLES
        and isinstance(message["content"], str)
    )


def _is_filled_text(prompt: Any) -> bool:
    return isinstance(prompt, str) and prompt != ""


def rust_fields(path: str, fields: Mapping[str, Any], max_tokens: int | None) -> dict[str, Any]:
    """Return the body to send for a supported request.

    Args:
        path: The route.
        fields: The body.
        max_tokens: The most tokens of an answer, or None. vLLM's own server has this limit from
            ``override_generation_config``, which the Rust front end does not accept.
    """
    changed = {**fields, "stream_options": USAGE}
    limits = [name for name in ("max_completion_tokens", "max_tokens") if name in fields]
    if max_tokens is None:
        return changed
    if not limits and path == "/v1/chat/completions":
        return changed | {"max_tokens": max_tokens}
    return changed | {
        name: min(fields[name], max_tokens) for name in limits if isinstance(fields[name], int)
    }


def estimated_prompt_tokens(fields: Mapping[str, Any]) -> int:
    """Return a quarter of the prompt's characters."""
    texts = [
        fields.get("prompt", ""),
        *(message["content"] for message in fields.get("messages", ())),
    ]
    return -(-sum(map(len, texts)) // 4)
