"""The routes that take a body, and the fields that a client may set on each.

Fields pass by an allowlist, so that a new argument of the engine stays closed until it is added.
A field that OpenAI or vLLM defines is accepted or rejected with a reason. Any other is unknown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal[
    "chat",
    "completion",
    "responses",
    "messages",
    "count_tokens",
    "embedding",
    "rerank",
    "score",
    "tokenize",
    "detokenize",
]


@dataclass(frozen=True, slots=True)
class Route:
    """A route that takes a body.

    Attributes:
        kind: The format of its requests and answers.
        accepted: The fields that reach the application.
    """

    kind: Kind
    accepted: frozenset[str]

    @property
    def uses_tokens(self) -> bool:
        """Whether the model computes on its requests, so that tokens are reserved ahead."""
        return self.kind not in ("count_tokens", "tokenize", "detokenize")


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a field is rejected.

    Attributes:
        reason: The end of the error message.
        harmless: Values that ask for nothing; the field is left out then.
    """

    reason: str
    harmless: tuple[Any, ...] = ()


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# OpenAI's clients send some fields that the engine ignores; they are accepted too.
_SAMPLING = _names(
    """
    model frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed stop stream
    stream_options temperature top_p user response_format
    top_k min_p repetition_penalty length_penalty include_stop_str_in_output ignore_eos
    min_tokens skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens
    truncation_side stop_token_ids allowed_token_ids bad_words add_special_tokens
    structured_outputs thinking_token_budget return_tokens_as_token_ids return_token_ids
    cache_salt repetition_detection
    """
)
_CHAT = _SAMPLING | _names(
    """
    messages top_logprobs max_completion_tokens tools tool_choice parallel_tool_calls
    reasoning_effort include_reasoning echo add_generation_prompt continue_final_message
    documents chat_template_kwargs metadata store service_tier prediction prompt_cache_key
    prompt_cache_options prompt_cache_retention safety_identifier verbosity
    """
)
_COMPLETION = _SAMPLING | _names("prompt echo")
_RESPONSES = _names(
    """
    input instructions model include max_output_tokens max_tool_calls metadata logit_bias
    parallel_tool_calls reasoning include_reasoning service_tier stream stream_options temperature
    text tool_choice tools top_logprobs top_k top_p truncation user skip_special_tokens
    include_stop_str_in_output presence_penalty frequency_penalty repetition_penalty seed stop
    ignore_eos structured_outputs chat_template_kwargs cache_salt prompt_cache_key
    prompt_cache_options prompt_cache_retention safety_identifier
    background previous_response_id store
    """
)
_COUNT_TOKENS = _names("model messages system tool_choice tools chat_template_kwargs")
_MESSAGES = _COUNT_TOKENS | _names(
    "max_tokens metadata output_config stop_sequences stream temperature top_k top_p cache_salt"
)
_POOLING = _names("model user truncate_prompt_tokens truncation_side use_activation cache_salt")
_EMBEDDING = _POOLING | _names(
    """
    input messages dimensions encoding_format embed_dtype endianness add_special_tokens
    add_generation_prompt continue_final_message chat_template_kwargs
    """
)
_SCORING = _POOLING | _names(
    "max_tokens_per_query max_tokens_per_doc instruction chat_template_kwargs documents"
)
_RERANK = _SCORING | _names("query top_n")
_SCORE = _SCORING | _names("queries items data_1 data_2 text_1 text_2")
_TOKENIZE = _names(
    """
    model prompt messages add_special_tokens return_token_strs add_generation_prompt
    continue_final_message chat_template_kwargs tools
    """
)
_DETOKENIZE = _names("model tokens")

POST_ROUTES: dict[str, Route] = {
    "/v1/chat/completions": Route("chat", _CHAT),
    "/v1/completions": Route("completion", _COMPLETION),
    "/v1/responses": Route("responses", _RESPONSES),
    "/v1/messages": Route("messages", _MESSAGES),
    "/v1/messages/count_tokens": Route("count_tokens", _COUNT_TOKENS),
    "/v1/embeddings": Route("embedding", _EMBEDDING),
    "/rerank": Route("rerank", _RERANK),
    "/v1/rerank": Route("rerank", _RERANK),
    "/v2/rerank": Route("rerank", _RERANK),
    "/score": Route("score", _SCORE),
    "/v1/score": Route("score", _SCORE),
    "/tokenize": Route("tokenize", _TOKENIZE),
    "/detokenize": Route("detokenize", _DETOKENIZE),
}
"""Every route that takes a body, by its path below the route prefix."""

_PLUGIN = Rejection("it steers the engine's own plugins", ({},))
_MEDIA = Rejection("it changes how the engine reads media for this request only", ({},))
_DETAILS = Rejection("it makes the engine return its internal state", (False,))
_IDENTITY = Rejection("the server names requests itself")
_NOT_HERE = "this endpoint has no such feature"

REJECTED: dict[str, Rejection] = {
    "access_programs": Rejection(_NOT_HERE, ([],)),
    "audio": Rejection("answers are text"),
    "background_options": Rejection(_NOT_HERE, ({},)),
    "best_of": Rejection("one request would cost as many answers as it asks for; use n", (1,)),
    "chat_template": Rejection("the model's own chat template is always used", ("",)),
    "context_management": Rejection("send the whole context in input", ([],)),
    "conversation": Rejection("conversations are not stored; send earlier turns in input"),
    "ec_transfer_params": _PLUGIN,
    "enable_response_messages": _DETAILS,
    "function_call": Rejection("use tool_choice", ("none", "auto")),
    "functions": Rejection("use tools", ([],)),
    "image": Rejection("answers are text"),
    "kv_transfer_params": _PLUGIN,
    "logprob_token_ids": Rejection("use logprobs and top_logprobs", ([],)),
    "media_io_kwargs": _MEDIA,
    "mm_processor_kwargs": _MEDIA,
    "modalities": Rejection("answers are text", (["text"], [])),
    "moderation": Rejection(_NOT_HERE),
    "padding": Rejection("a short prompt would cost as much as the longest", ("do_not_pad",)),
    "previous_input_messages": Rejection("send earlier turns in input", ([],)),
    "priority": Rejection("the requests of all tenants have the same priority", (0,)),
    "prompt": Rejection("prompt templates are not stored here; send the text itself"),
    "prompt_embeds": Rejection("it sends serialized objects to the engine", ([],)),
    "prompt_logprobs": Rejection(
        "it needs a pass over the vocabulary for every token of the prompt"
    ),
    "request_id": _IDENTITY,
    "return_assistant_tokens_mask": _DETAILS,
    "return_prompt_text": _DETAILS,
    "return_token_offsets": _DETAILS,
    "routed_experts_prompt_start": Rejection("it makes the engine return its internal state", (0,)),
    "session_id": _IDENTITY,
    "stream_interval": Rejection("the server chooses how many tokens an event has", (1,)),
    "suffix": Rejection("the engine cannot insert text before a suffix", ("",)),
    "use_beam_search": Rejection("one request would cost as much as all its beams", (False,)),
    "vllm_xargs": _PLUGIN,
    "web_search_options": Rejection("the server does not search the web", ({},)),
}
"""Fields of OpenAI's API and of vLLM that are rejected on every route that does not accept them."""

INTEGERS = _names(
    """
    max_tokens max_completion_tokens max_output_tokens min_tokens max_tool_calls n seed top_k
    logprobs top_logprobs truncate_prompt_tokens thinking_token_budget dimensions top_n
    max_tokens_per_query max_tokens_per_doc
    """
)
"""Fields with one integer; a client may write 16.0 for 16."""
