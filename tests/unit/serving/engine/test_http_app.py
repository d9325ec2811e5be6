"""The errors of vLLM's application as clients read them."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import fastapi
import httpx
import pytest
from pydantic import BaseModel, Field
from vllm.exceptions import GenerationError, VLLMValidationError

from serving.engine.http_app import build_engine_app, readable_error
from serving.gateway.asgi import App
from serving.gateway.context import SCOPE_KEY

PRIVATE = "078-05-1120"


class Text(BaseModel):
    type: Literal["text"]
    text: str


class Image(BaseModel):
    type: Literal["image"]
    url: str


class Function(BaseModel):
    name: str


class Tool(BaseModel):
    function: Function


class Chat(BaseModel):
    tools: list[Tool] = []
    content: str | list[Text] = ""
    part: Annotated[Text | Image, Field(discriminator="type")] | None = None
    n: int = 1


def engine_app() -> fastapi.FastAPI:
    """An application with the shapes of error that vLLM's has."""
    app = fastapi.FastAPI()

    async def chat(body: Chat) -> dict[str, Any]:
        return body.model_dump()

    async def completions() -> None:
        raise fastapi.HTTPException(503, "The engine sleeps.")

    async def responses() -> None:
        raise GenerationError("KV cache load failure")

    async def on_vllm_error(request: fastapi.Request, error: Exception) -> Any:
        raise AssertionError("replaced")

    routes = {
        "/v1/chat/completions": chat,
        "/v1/completions": completions,
        "/v1/responses": responses,
    }
    for path, answer in routes.items():
        app.add_api_route(path, answer, methods=["POST"])
    app.add_exception_handler(GenerationError, on_vllm_error)
    return app


def post(path: str, body: dict[str, Any], wrap: Any = lambda app: app) -> httpx.Response:
    async def send() -> httpx.Response:
        app: Any = wrap(build_engine_app(engine_app(), ("generate", "embed")))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://replica") as client:
            return await client.post(path, json=body)

    return asyncio.run(send())


def error(path: str, body: dict[str, Any], status: int) -> dict[str, Any]:
    reply = post(path, body)
    assert reply.status_code == status, reply.text
    fields: dict[str, Any] = reply.json()["error"]
    assert set(fields) == {"message", "type", "param", "code"}
    assert PRIVATE not in reply.text
    return fields


def test_a_valid_request_passes() -> None:
    assert post("/v1/chat/completions", {"n": 2}).json()["n"] == 2


@pytest.mark.parametrize("path", ["/v1/embeddings", "/rerank", "/nothing"])
def test_a_route_that_the_model_cannot_serve_is_named_with_what_it_supports(path: str) -> None:
    fields = error(path, {}, 404)
    assert fields["message"] == f"This model cannot serve {path}: it supports embed, generate."
    assert fields["code"] == "unsupported_route"


def test_the_route_prefix_is_not_part_of_the_route() -> None:
    def with_prefix(app: App) -> App:
        async def prefixed(scope: Any, receive: Any, send: Any) -> None:
            await app(scope | {"root_path": "/llm"}, receive, send)

        return prefixed

    reply = post("/llm/v1/embeddings", {}, with_prefix)
    assert "cannot serve /v1/embeddings:" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "field", "reason"),
    [
        ({"tools": [{"function": {"x": PRIVATE}}]}, "tools.0.function.name", "Field required"),
        ({"content": [{"type": "text", "text": [PRIVATE]}]}, "content", "valid string"),
        ({"n": PRIVATE}, "n", "valid integer"),
        ({"part": {"type": PRIVATE}}, "part", "must be one of 'text', 'image'"),
    ],
)
def test_an_invalid_field_is_named_without_its_value(
    body: dict[str, Any], field: str, reason: str
) -> None:
    fields = error("/v1/chat/completions", body, 400)
    assert fields["param"] == field
    assert fields["message"].startswith(f"{field}: ")
    assert reason in fields["message"]
    assert fields["type"] == "invalid_request_error"


def test_an_http_exception_has_openais_shape() -> None:
    fields = error("/v1/completions", {}, 503)
    assert (fields["message"], fields["type"]) == ("The engine sleeps.", "server_error")
    assert post("/v1/completions", {}).headers["content-type"] == "application/json"


def test_a_request_that_the_engine_gave_up_is_the_clients_fault_only_with_a_grammar() -> None:
    def with_context(constrained: bool) -> Any:
        context = SimpleNamespace(constrained=constrained)

        def wrap(app: App) -> App:
            async def wrapped(scope: Any, receive: Any, send: Any) -> None:
                await app(scope | {SCOPE_KEY: context}, receive, send)

            return wrapped

        return wrap

    for reply in (post("/v1/responses", {}), post("/v1/responses", {}, with_context(False))):
        assert reply.status_code == 500
        assert "KV cache load failure" in reply.json()["error"]["message"]
    reply = post("/v1/responses", {}, with_context(True))
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "grammar_dead_end")


@pytest.mark.parametrize("fields", [{"parameter": "bad_words"}, {}])
def test_the_value_that_vllm_appends_to_a_message_is_removed(fields: dict[str, Any]) -> None:
    message = str(VLLMValidationError("bad_words is empty (x)", **fields, value=[PRIVATE]))
    assert PRIVATE in message
    error = {"message": message, "type": "BadRequestError", "code": 400}
    expected = {"message": "bad_words is empty (x)", "type": "BadRequestError"}
    body = json.loads(readable_error(json.dumps({"error": error}).encode()))
    assert body == {"error": expected | {"param": None, "code": 400}}


@pytest.mark.parametrize("body", [b"", b"no JSON", b"[]", b'{"error": "text"}', b'{"detail": 1}'])
def test_what_is_no_error_in_json_is_passed_on(body: bytes) -> None:
    assert readable_error(body) == body
