"""The routes that take a body, and the fields that a client may set on each.

Fields pass by an allowlist, so that a new argument of the engine stays closed until it is added.
"""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# OpenAI's client sends some fields that the engine ignores; they are allowed too.
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
"""Every route that takes a body, and the fields allowed in it."""

GENERATING_ROUTES = frozenset({"/v1/chat/completions", "/v1/completions"})
"""Routes whose requests generate tokens, which are reserved ahead."""

REFUSAL_REASONS = {
    "chat_template": "the model's own chat template is always used",
    "priority": "the requests of all tenants have the same priority",
    "prompt_logprobs": "it needs a pass over the vocabulary for every token of the prompt",
    "use_beam_search": "one request would cost as much as all its beams",
    "best_of": "one request would cost as many answers as it asks for; use n",
    "prompt_embeds": "it sends serialized objects to the engine",
}
"""Why a field is refused; without a reason the client would look for a spelling mistake."""
