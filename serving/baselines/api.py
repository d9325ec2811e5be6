"""OpenAI's HTTP API over a baseline's engine: completions, chat, models, and what was counted.

Greedy decoding only: a request that asks for anything else is refused by name, not misread.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from serving.baselines.engine_client import Engine
from serving.baselines.requests import Event
from serving.baselines.tokenizer import Text, Tokenizer
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
"""What asks for nothing, of the fields that a baseline does not have."""
IGNORED = ("user", "seed", "metadata", "store")
DONE = b"data: [DONE]\n\n"
DEFAULT_MAX_TOKENS = 16  # OpenAI's, for completions


class Refused(Exception):
    """A request that is answered with an error: its status, message and code."""

    def __init__(self, message: str, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Asked(BaseModel):
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

    def refuse_extras(self) -> None:
        """Raises Refused for a field that changes the answer and is not known here."""
        for name, value in (self.model_extra or {}).items():
            if value is not None and name not in IGNORED and value not in NEUTRAL.get(name, ()):
                raise Refused(f"{name} = {value!r}: a baseline decodes greedily; leave it out")


class Api:
    """The routes, over one engine."""

    def __init__(self, spec: BaselineSpec, engine: Engine) -> None:
        self._engine = engine
        self._model_id = spec.model.model_id
        self._tokenizer = Tokenizer.of(spec.model)
        self._created = int(time.time())

    def app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[
                Route("/v1/completions", self._completions, methods=["POST"]),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/models", self._models),
                Route("/v1/models/{name:path}", self._models),
                Route("/load", self._load),
                Route("/health", self._health),
            ],
            exception_handlers={Refused: _on_refused, 404: _on_no_route, 405: _on_no_route},
        )

    async def _completions(self, request: Request) -> Response:
        asked = await self._asked(request)
        if asked.prompt is None or asked.messages is not None:
            raise Refused("prompt is missing: give one text, or one list of token ids")
        text = isinstance(asked.prompt, str)
        ids = self._tokenizer.encode(asked.prompt) if text else asked.prompt
        return await self._answer(asked, list(ids), chat=False)  # type: ignore[arg-type]

    async def _chat(self, request: Request) -> Response:
        asked = await self._asked(request)
        if not asked.messages or asked.prompt is not None:
            raise Refused("messages is missing: give a list of objects with role and content")
        try:
            ids = self._tokenizer.encode_chat(asked.messages)
        except Exception as error:  # of the model's own template, whatever it raises
            raise Refused(f"messages: the chat template refuses them ({error})") from None
        return await self._answer(asked, ids, chat=True)

    async def _asked(self, request: Request) -> Asked:
        try:
            asked = Asked.model_validate_json(await request.body())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "body"
            raise Refused(f"{where}: {first['msg']}", code="invalid_parameter") from None
        if asked.model != self._model_id:
            raise Refused(f"The model {asked.model!r} does not exist.", 404, "model_not_found")
        asked.refuse_extras()
        return asked

    def _bounded(self, asked: Asked, ids: list[int], chat: bool) -> int:
        """The most tokens of the answer; raises Refused for what the context does not hold."""
        context = self._tokenizer.context
        given = asked.max_completion_tokens or asked.max_tokens
        tokens = given or (context - len(ids) if chat else DEFAULT_MAX_TOKENS)
        if not ids:
            raise Refused("prompt is empty")
        if not all(0 <= token < self._tokenizer.vocabulary for token in ids):
            raise Refused(f"prompt has an id outside 0..{self._tokenizer.vocabulary - 1}")
        if len(ids) + max(tokens, 1) > context:
            raise Refused(
                f"This model's maximum context length is {context} tokens, but the prompt has "
                f"{len(ids)} and max_tokens is {max(tokens, 1)}. Shorten one of them.",
                code="context_length_exceeded",
            )
        return tokens

    async def _answer(self, asked: Asked, ids: list[int], *, chat: bool) -> Response:
        tokens = self._bounded(asked, ids, chat)
        events = self._engine.generate(ids, tokens, asked.ignore_eos)
        shape = Shape(self._model_id, chat)
        if asked.stream:
            usage = bool((asked.stream_options or {}).get("include_usage"))
            stream = _stream(events, self._tokenizer.text(), shape, len(ids) if usage else None)
            return StreamingResponse(stream, media_type="text/event-stream")
        text, made, finish = self._tokenizer.text(), 0, None
        said = []
        async with aclosing(events) as coming:
            async for event in coming:
                if event.error is not None:
                    raise Refused(event.error, 500, "engine_error")
                said.append(text.add(event.tokens))
                made, finish = made + len(event.tokens), event.finish
        return _json(shape.whole("".join(said), finish, len(ids), made))

    async def _models(self, request: Request) -> Response:
        card = {
            "id": self._model_id,
            "object": "model",
            "created": self._created,
            "owned_by": "transformers",
            "max_model_len": self._tokenizer.context,
        }
        name = request.path_params.get("name")
        if name is None:
            return _json({"object": "list", "data": [card]})
        if name != self._model_id:
            raise Refused(f"The model {name!r} does not exist.", 404, "model_not_found")
        return _json(card)

    async def _load(self, request: Request) -> Response:
        return _json(self._engine.stats)

    async def _health(self, request: Request) -> Response:
        return _json({"status": "ok"})


class Shape:
    """The objects of one answer, as completions or as a chat."""

    def __init__(self, model: str, chat: bool) -> None:
        self._chat = chat
        kind = "chat.completion" if chat else "text_completion"
        self._id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._base = {"id": self._id, "object": kind, "created": int(time.time()), "model": model}
        self._chunk = self._base | {"object": "chat.completion.chunk" if chat else kind}

    def opening(self) -> bytes:
        """What a streamed chat begins with."""
        choice = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        return _sse(self._chunk | {"choices": [choice]}) if self._chat else b""

    def chunk(self, text: str, finish: str | None) -> bytes:
        """An event of new text."""
        said = {"delta": {"content": text}} if self._chat else {"text": text}
        return _sse(self._chunk | {"choices": [{"index": 0, **said, "finish_reason": finish}]})

    def usage(self, prompt: int, made: int) -> bytes:
        """The last event, where the client asked for it."""
        return _sse(self._chunk | {"choices": [], "usage": _usage(prompt, made)})

    def whole(self, text: str, finish: str | None, prompt: int, made: int) -> dict[str, Any]:
        """An answer in one piece."""
        message = {"role": "assistant", "content": text}
        said = {"message": message} if self._chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish}
        return self._base | {"choices": [choice], "usage": _usage(prompt, made)}


async def _stream(
    events: AsyncGenerator[Event, None], text: Text, shape: Shape, prompt: int | None
) -> AsyncIterator[bytes]:
    """Server-sent events; one a token, as from vLLM, with usage if `prompt` is its token count."""
    made = 0
    if opening := shape.opening():
        yield opening
    async with aclosing(events) as coming:
        async for event in coming:
            if event.error is not None:
                yield _sse(error_body(event.error, "server_error", "engine_error"))
                break
            made += len(event.tokens)
            last = len(event.tokens) - 1
            for i, token in enumerate(event.tokens):
                yield shape.chunk(text.add([token]), event.finish if i == last else None)
    if prompt is not None:
        yield shape.usage(prompt, made)
    yield DONE


def _usage(prompt: int, made: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


def _sse(value: Any) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


async def _on_refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refused)
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    return JSONResponse(error_body(str(error), kind, error.code), error.status)


async def _on_no_route(request: Request, error: Exception) -> JSONResponse:
    status = getattr(error, "status_code", 404)
    message = f"{request.method} {request.url.path}: there is no such route."
    return JSONResponse(error_body(message, "invalid_request_error", None), status)
