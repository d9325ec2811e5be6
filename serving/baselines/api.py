"""OpenAI's HTTP API over a baseline's engine: completions, chat and the engine's stats.

Decoding is greedy. A request for anything else is refused, with the name of the field.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from serving.baselines.engine_client import EngineClient
from serving.baselines.responses import ResponseFormat, stream_response
from serving.baselines.tokenizer import BaselineTokenizer
from serving.gateway.asgi import error_body
from serving.spec.baseline import BaselineSpec

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "temperature": (0,),
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "top_p": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logprobs": (False,),
}
"""Values without effect, of the fields that a baseline does not support."""

IGNORED = ("user", "seed", "metadata", "store")
"""Fields that do not change a greedy answer."""

DEFAULT_MAX_TOKENS = 16  # OpenAI's, for completions


class RefusedRequest(Exception):
    """A request that gets an error response, with an HTTP status, a message and a code."""

    def __init__(self, message: str, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class BaselineRequest(BaseModel):
    """The fields of a request that a baseline reads."""

    model_config = ConfigDict(extra="allow")

    model: str
    prompt: str | list[int] | None = None
    messages: list[dict[str, Any]] | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    ignore_eos: bool = False
    stream: bool = False
    stream_options: dict[str, Any] | None = None

    def check_extras(self) -> None:
        """Check that no other field would change the answer.

        Raises:
            RefusedRequest: A field would change it.
        """
        for name, value in (self.model_extra or {}).items():
            if value is not None and name not in IGNORED and value not in NEUTRAL.get(name, ()):
                raise RefusedRequest(
                    f"{name} must be left out, because a baseline decodes greedily, got {value!r}"
                )


class Api:
    """The routes over one engine."""

    def __init__(self, spec: BaselineSpec, engine: EngineClient) -> None:
        self._engine = engine
        self._model_id = spec.model.model_id
        self._tokenizer = BaselineTokenizer.load(spec.model)

    @property
    def context_length(self) -> int:
        """Context length of the model in tokens."""
        return self._tokenizer.context

    def app(self) -> Starlette:
        """Return the ASGI application."""
        return Starlette(
            routes=[
                Route("/v1/completions", self._completions, methods=["POST"]),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/load", self._load),
                Route("/health", self._health),
            ],
            exception_handlers={RefusedRequest: _on_refused, 404: _on_no_route, 405: _on_no_route},
        )

    async def _completions(self, http_request: Request) -> Response:
        request = await self._parse(http_request)
        if request.prompt is None or request.messages is not None:
            raise RefusedRequest("prompt is required; give one text, or one list of token ids")
        if isinstance(request.prompt, str):
            return await self._answer(request, self._tokenizer.encode(request.prompt), chat=False)
        return await self._answer(request, request.prompt, chat=False)

    async def _chat(self, http_request: Request) -> Response:
        request = await self._parse(http_request)
        if not request.messages or request.prompt is not None:
            raise RefusedRequest(
                "messages is required; give a list of objects with role and content"
            )
        try:
            ids = self._tokenizer.encode_chat(request.messages)
        except Exception as error:  # the model's own template may raise anything
            raise RefusedRequest(f"messages must suit the chat template ({error})") from None
        return await self._answer(request, ids, chat=True)

    async def _parse(self, http_request: Request) -> BaselineRequest:
        try:
            request = BaselineRequest.model_validate_json(await http_request.body())
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "body"
            raise RefusedRequest(f"{field}: {first['msg']}", code="invalid_parameter") from None
        request.check_extras()
        return request

    def _max_tokens(self, request: BaselineRequest, ids: list[int], chat: bool) -> int:
        """Return the most tokens of the answer; refuse what the context does not hold."""
        context, vocabulary = self._tokenizer.context, self._tokenizer.vocabulary
        default = context - len(ids) if chat else DEFAULT_MAX_TOKENS
        tokens = request.max_completion_tokens or request.max_tokens or default
        if not ids:
            raise RefusedRequest("prompt must not be empty; give at least one token")
        if not all(0 <= token < vocabulary for token in ids):
            raise RefusedRequest(f"prompt must have ids in 0..{vocabulary - 1} only")
        if len(ids) + max(tokens, 1) > context:
            raise RefusedRequest(
                f"This model's maximum context length is {context} tokens, but the prompt has "
                f"{len(ids)} and max_tokens is {max(tokens, 1)}; shorten one of them.",
                code="context_length_exceeded",
            )
        return tokens

    async def _answer(self, request: BaselineRequest, ids: list[int], *, chat: bool) -> Response:
        max_tokens = self._max_tokens(request, ids, chat)
        events = self._engine.generate(list(ids), max_tokens, request.ignore_eos)
        shape, text = ResponseFormat(self._model_id, chat), self._tokenizer.stream()
        if request.stream:
            usage = bool((request.stream_options or {}).get("include_usage"))
            stream = stream_response(events, text, shape, len(ids) if usage else None)
            return StreamingResponse(stream, media_type="text/event-stream")
        parts, output_tokens, finish = [], 0, None
        async with aclosing(events):
            async for event in events:
                if event.error is not None:
                    raise RefusedRequest(event.error, 500, "engine_error")
                parts.append(text.add(event.tokens))
                output_tokens, finish = output_tokens + len(event.tokens), event.finish
        return _json(shape.whole("".join(parts), finish, len(ids), output_tokens))

    async def _load(self, http_request: Request) -> Response:
        return _json(self._engine.stats)

    async def _health(self, http_request: Request) -> Response:
        return _json({"status": "ok"})


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


async def _on_refused(http_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RefusedRequest)
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    return JSONResponse(error_body(str(error), kind, error.code), error.status)


async def _on_no_route(http_request: Request, error: Exception) -> JSONResponse:
    status = getattr(error, "status_code", 404)
    route = f"{http_request.method} {http_request.url.path}"
    message = f"{route}: there is no such route at a baseline, which serves chat and completions."
    return JSONResponse(error_body(message, "invalid_request_error", "unsupported_route"), status)
