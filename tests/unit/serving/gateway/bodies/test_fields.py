"""The table of fields. Ground truth: the request classes of vLLM and the OpenAI client."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as OpenAIChat
from openai.types.completion_create_params import CompletionCreateParamsBase as OpenAICompletion
from openai.types.embedding_create_params import EmbeddingCreateParams
from openai.types.responses.response_create_params import ResponseCreateParamsBase
from pydantic import BaseModel
from vllm.entrypoints.anthropic import protocol as anthropic
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.pooling.embed.protocol import EmbeddingRequest
from vllm.entrypoints.pooling.scoring.protocol import RerankRequest, ScoreRequest
from vllm.entrypoints.serve.tokenize.protocol import DetokenizeRequest, TokenizeRequest

from serving.gateway.bodies.fields import INTEGERS, POST_ROUTES, REJECTED

VLLM: dict[str, Any] = {
    "chat": ChatCompletionRequest,
    "completion": CompletionRequest,
    "responses": ResponsesRequest,
    "messages": anthropic.AnthropicMessagesRequest,
    "count_tokens": anthropic.AnthropicCountTokensRequest,
    "embedding": EmbeddingRequest,
    "rerank": RerankRequest,
    "score": ScoreRequest,
    "tokenize": TokenizeRequest,
    "detokenize": DetokenizeRequest,
}
OPENAI: dict[str, Any] = {
    "chat": OpenAIChat,
    "completion": OpenAICompletion,
    "responses": ResponseCreateParamsBase,
    "embedding": EmbeddingCreateParams,
}


def models_of(annotation: Any) -> list[type[BaseModel]]:
    """The request classes in an alias, which may be a union with validators around it."""
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for part in get_args(annotation) for model in models_of(part)]


def defined_fields(kind: str) -> set[str]:
    names = {
        field.alias or name
        for model in models_of(VLLM[kind])
        for name, field in model.model_fields.items()
    }
    return names | set(get_type_hints(OPENAI[kind]) if kind in OPENAI else ())


@pytest.mark.parametrize("path", POST_ROUTES)
def test_every_defined_field_is_accepted_or_rejected_with_a_reason(path: str) -> None:
    route = POST_ROUTES[path]
    unclassified = defined_fields(route.kind) - route.accepted - REJECTED.keys()
    assert not unclassified, f"add these to {path} or to REJECTED in fields.py"


@pytest.mark.parametrize("path", POST_ROUTES)
def test_every_accepted_field_is_defined(path: str) -> None:
    route = POST_ROUTES[path]
    assert route.accepted - {"stream"} <= defined_fields(route.kind)


def test_every_rejected_field_is_defined_somewhere() -> None:
    defined = set().union(*map(defined_fields, VLLM))
    assert REJECTED.keys() <= defined
    assert all(rejection.reason for rejection in REJECTED.values())


def test_nothing_that_steers_the_engine_is_accepted() -> None:
    steering = {"priority", "vllm_xargs", "kv_transfer_params", "chat_template", "request_id"}
    steering |= {"prompt_embeds", "mm_processor_kwargs", "media_io_kwargs", "session_id"}
    for route in POST_ROUTES.values():
        assert not route.accepted & steering
    assert steering <= REJECTED.keys()


def test_integers_are_integers_for_vllm() -> None:
    """A whole number such as 16.0 becomes 16 only in a field whose type allows integers."""
    for name in INTEGERS:
        types = {
            str(field.annotation)
            for kind in VLLM
            for model in models_of(VLLM[kind])
            for key, field in model.model_fields.items()
            if key == name
        }
        assert any("int" in text for text in types), name
