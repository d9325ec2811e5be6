"""A request's body: read within its limits, parsed once, and checked field by field.

What reaches the engine is what was checked, written anew: two parsers that read one text
differently (a name given twice, say) would let through what was refused. Fields pass by a list of
those allowed, so that a new argument of the engine is closed until it is opened here.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from serving.gateway.asgi import ApiError, Receive
from serving.spec.limits import Limits

MAX_DEPTH = 48
"""Levels of nested JSON; real requests with a tool's schema have a dozen."""
LARGEST_INT = 2**63 - 1


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Fields of OpenAI's own that the engine ignores are let through: its client sends them.
_COMMON = _names(
    """
    model frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed stop stream
    stream_options temperature top_p user response_format metadata store service_tier
    top_k min_p repetition_penalty length_penalty include_stop_str_in_output ignore_eos
    min_tokens skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens
    truncation_side stop_token_ids allowed_token_ids bad_words add_special_tokens
    structured_outputs thinking_token_budget return_tokens_as_token_ids return_token_ids
    cache_salt repetition_detection
    """
)
_CHAT = _COMMON | _names(
    """
    messages top_logprobs max_completion_tokens tools tool_choice parallel_tool_calls
    reasoning_effort include_reasoning echo add_generation_prompt continue_final_message
    documents chat_template_kwargs prompt_cache_key safety_identifier verbosity
    """
)
_COMPLETION = _COMMON | _names("prompt echo suffix")
_TOKENIZE = _names(
    """
    model prompt messages add_special_tokens return_token_strs add_generation_prompt
    continue_final_message tools
    """
)
_DETOKENIZE = _names("model tokens")

POST_ROUTES: dict[str, frozenset[str]] = {
    "/v1/chat/completions": _CHAT,
    "/v1/completions": _COMPLETION,
    "/tokenize": _TOKENIZE,
    "/detokenize": _DETOKENIZE,
}
"""Every route that takes a body, and the fields that the body may have."""

GENERATING = frozenset({"/v1/chat/completions", "/v1/completions"})

# Reasons, because «not accepted» alone would send people looking for a spelling mistake.
_REFUSED = {
    "chat_template": "the model's own template holds",
    "priority": "every tenant's requests are equal",
    "prompt_logprobs": "it costs a pass over the vocabulary for every token of the prompt",
    "use_beam_search": "one request would cost as many as there are beams",
    "best_of": "one request would cost as many as it names; use n",
    "prompt_embeds": "it feeds the engine serialized objects",
}


@dataclass
class Body:
    """A checked body: its fields, and what its size and limits say of the cost to come."""

    fields: dict[str, Any]
    prompt_chars: int
    hide_usage: bool = False

    @property
    def model(self) -> str | None:
        """The model it names, if any."""
        return self.fields.get("model")

    @property
    def reserved_tokens(self) -> int:
        """Tokens it may cost: a quarter of the prompt's characters, and the answers asked for."""
        most = self.fields.get("max_completion_tokens") or self.fields.get("max_tokens") or 0
        return math.ceil(self.prompt_chars / 4) + max(0, most) * max(1, self.fields.get("n") or 1)

    @property
    def constrained(self) -> bool:
        """Whether a grammar of the client's rules which tokens may follow."""
        names = ("structured_outputs", "response_format", "tools")
        return any(self.fields.get(name) for name in names)

    def ask_for_usage(self) -> None:
        """Have a stream end with the engine's own count of tokens; it is hidden again after.

        One small event a stream costs less than reading every event, and counts what those do
        not show: the prompt, and several tokens in one event.
        """
        if self.fields.get("stream"):
            options = self.fields.get("stream_options")
            if not (isinstance(options, dict) and options.get("include_usage")):
                self.hide_usage = True
                self.fields["stream_options"] = {"include_usage": True}

    def encoded(self) -> bytes:
        """What goes to the engine."""
        text = json.dumps(self.fields, ensure_ascii=False, separators=(",", ":"))
        try:
            return text.encode()
        except UnicodeEncodeError:
            raise _bad("A string holds half of a surrogate pair.", "invalid_json") from None


async def read(receive: Receive, limits: Limits, grow: Callable[[int], None]) -> bytes | None:
    """The whole body, or None if the client left; ``grow`` is told the size of each part."""
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                part = message.get("body", b"")
                size += len(part)
                if size > limits.max_body_bytes:
                    raise too_large(limits)
                grow(len(part))
                parts.append(part)
                more = message.get("more_body", False)
    except TimeoutError:
        raise ApiError(
            408,
            f"The request body was not complete after {limits.body_timeout_s:g} s.",
            "request_timeout",
        ) from None
    return b"".join(parts)


def too_large(limits: Limits) -> ApiError:
    """The refusal of a body beyond its limit."""
    return ApiError(
        413, f"The request body exceeds {limits.max_body_bytes} bytes.", "body_too_large"
    )


def check(route: str, raw: bytes, limits: Limits) -> Body:
    """Parse and check one body.

    Raises:
        Refusal: 400, saying which field; the value is never repeated, since it may be private.
    """
    fields = _parsed(raw)
    for name in fields:
        if name not in POST_ROUTES[route]:
            shown = name if name.isidentifier() and len(name) < 64 else "A field"
            reason = _REFUSED.get(name, "it is no field of this route, or none a client may set")
            raise _bad(f"{shown} is not accepted here: {reason}.", "unknown_parameter")
    chars = _walk(fields)
    if chars > limits.max_prompt_chars:
        raise _bad(
            f"The prompt has more than {limits.max_prompt_chars} characters.", "prompt_too_long"
        )
    _check_counts(fields, limits)
    _check_stops(fields, limits)
    _check_chat(fields, limits)
    return Body(fields, chars)


def _parsed(raw: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(raw.decode(), parse_constant=_no_constant)
    except RecursionError:
        raise _bad(f"The body is nested deeper than {MAX_DEPTH} levels.", "invalid_json") from None
    except UnicodeDecodeError:
        raise _bad("The body is not UTF-8.", "invalid_json") from None
    except ValueError as error:
        # The error's own words name a place, never the text.
        where = f" ({error.msg}, at {error.pos})" if isinstance(error, json.JSONDecodeError) else ""
        raise _bad(f"The body is not JSON{where}.", "invalid_json") from None
    if not isinstance(fields, dict):
        raise _bad("The body is not a JSON object.", "invalid_json")
    return fields


def _no_constant(name: str) -> Any:
    raise _bad(f"The body holds {name}, which is not JSON.", "invalid_json")


def _walk(value: Any, depth: int = 1) -> int:
    """Characters of all strings below ``value``, a number counting as one; checks each value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict | list):
        if depth > MAX_DEPTH:
            raise _bad(f"The body is nested deeper than {MAX_DEPTH} levels.", "invalid_json")
        if isinstance(value, list):
            return sum(_walk(inner, depth + 1) for inner in value)
        return sum(len(name) + _walk(inner, depth + 1) for name, inner in value.items())
    if isinstance(value, float) and not math.isfinite(value):
        raise _bad("A number is too large.", "invalid_number")
    if isinstance(value, int) and abs(value) > LARGEST_INT:
        raise _bad("A number is too large.", "invalid_number")
    return 1


def _check_counts(fields: dict[str, Any], limits: Limits) -> None:
    for name in ("max_tokens", "max_completion_tokens", "min_tokens"):
        _at_most(fields, name, limits.max_tokens)
    _at_most(fields, "n", limits.max_choices)
    prompts = fields.get("prompt")
    several = isinstance(prompts, list) and prompts and not isinstance(prompts[0], int)
    answers = (fields.get("n") or 1) * (len(prompts) if several and prompts else 1)
    if answers > limits.max_choices:
        raise _bad(
            f"n for each prompt makes {answers} answers; at most {limits.max_choices} are given.",
            "too_many_choices",
        )
    for name in ("stop_token_ids", "allowed_token_ids", "bad_words", "logit_bias"):
        held = fields.get(name)
        if isinstance(held, list | dict) and len(held) > 1024:
            raise _bad(f"{name} has more than 1024 entries.", "too_many_values")


def _at_most(fields: dict[str, Any], name: str, limit: int) -> None:
    value = fields.get(name)
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise _bad(f"{name} is not a whole number.", "invalid_type")
    if value > limit:
        raise _bad(f"{name} is above {limit}, the largest value here.", f"{name}_too_large")


def _check_stops(fields: dict[str, Any], limits: Limits) -> None:
    stops = fields.get("stop")
    stops = [stops] if isinstance(stops, str) else stops or []
    if not isinstance(stops, list):
        raise _bad("stop is neither a string nor a list of strings.", "invalid_type")
    if len(stops) > limits.max_stop_strings:
        raise _bad(f"stop has more than {limits.max_stop_strings} strings.", "too_many_stops")
    if any(isinstance(one, str) and len(one) > limits.max_stop_chars for one in stops):
        raise _bad(
            f"A stop string has more than {limits.max_stop_chars} characters.", "stop_too_long"
        )


def _check_chat(fields: dict[str, Any], limits: Limits) -> None:
    if not isinstance(fields.get("model"), str | None):
        raise _bad("model is not a string.", "invalid_type")
    if not isinstance(fields.get("stream"), bool | None):
        raise _bad("stream is neither true nor false.", "invalid_type")
    messages = fields.get("messages")
    if isinstance(messages, list):
        if len(messages) > limits.max_messages:
            raise _bad(f"There are more than {limits.max_messages} messages.", "too_many_messages")
        for message in messages:
            _check_media(message)
    if isinstance(kwargs := fields.get("chat_template_kwargs"), dict):
        for name in ("chat_template", "tokenize", "messages", "tools"):
            if name in kwargs:
                raise _bad(f"chat_template_kwargs.{name} is not accepted.", "unknown_parameter")


def _check_media(message: Any) -> None:
    """Media come in the request: an address in it would have the server fetch what it names."""
    parts = message.get("content") if isinstance(message, dict) else None
    for part in parts if isinstance(parts, list) else []:
        for name, value in part.items() if isinstance(part, dict) else ():
            url = value.get("url") if isinstance(value, dict) else value
            if name.endswith("_url") and not (isinstance(url, str) and url.startswith("data:")):
                raise _bad(
                    f"{name} must hold the data itself (data:...), not an address.", "remote_media"
                )


def _bad(message: str, code: str) -> ApiError:
    return ApiError(400, message, code)
