"""The direct and the composed path give the same status for the same body.

The engine's application is scripted; everything of the project between it and the client is real.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import fastapi
import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from support.attack_bodies import MALICIOUS_BODIES
from support.gate_server import AUTHORIZED, CONFIG
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler
from vllm.exceptions import GenerationError

from serving.compat.vllm import request_class
from serving.engine.http_app import build_engine_app
from serving.engine.http_call import EngineRequest, call_app
from serving.gateway.asgi import App
from serving.gateway.bodies.fields import POST_ROUTES, REJECTED
from serving.gateway.gate import Gate
from serving.pipeline.config import PipelineConfig
from serving.pipeline.dispatcher import Dispatcher, ModelHealth
from serving.pipeline.http_app import create_app
from serving.pipeline.ingress import Ingress
from serving.spec.limits import Limits

ROUTES = [route for route in POST_ROUTES if not route.endswith(("embeddings", "rerank", "score"))]


def engine() -> App:
    """An engine's application that validates bodies with vLLM's classes.

    The status of its answer is the body's field ``seed``.
    """
    app = fastapi.FastAPI()
    app.state.args = argparse.Namespace(log_error_stack=False)
    init_exception_handler(app)
    for route in ROUTES:
        app.post(route)(_handler(request_class(POST_ROUTES[route].kind)))
    return build_engine_app(app, ["generate"])


def _handler(body_class: type[BaseModel]) -> Callable[..., Any]:
    async def answer(body: body_class) -> Any:  # type: ignore[valid-type]
        status = getattr(body, "seed", 0)
        if status in (400, 404, 422, 501):
            raise fastapi.HTTPException(status, "The engine refuses.")
        if status == 13:
            raise GenerationError("The engine gave up.")
        return {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}

    answer.__annotations__["body"] = body_class
    return answer


class Packets:
    """A response generator of Serve."""

    def __init__(self, app: App, request: EngineRequest) -> None:
        self._packets = call_app(app, request)

    async def __anext__(self) -> Any:
        return await anext(self._packets)

    def __aiter__(self) -> Packets:
        return self

    def cancel(self) -> None:
        pass


class Handle:
    """A handle of the engine's deployment."""

    def __init__(self, app: App) -> None:
        self._app = app

    def options(self, **options: Any) -> Handle:
        return self

    @property
    def handle_http(self) -> Handle:
        return self

    def remote(self, request: EngineRequest) -> Packets:
        return Packets(self._app, request)


def composed() -> App:
    plain_class: Any = Ingress.__bases__[0]  # Serve's decorator derives from it
    ingress = plain_class({"m": Handle(engine())})
    ingress._config = PipelineConfig(capacity={"m": 8}, deployments={"m": "d"})
    ingress._dispatcher = Dispatcher({"m": 8}, ModelHealth(dict), 1, 60)
    app: App = create_app(ingress.answer)
    return app


class Paths:
    """A gate in front of each path, called in this process."""

    def __init__(self) -> None:
        config = CONFIG.model_copy(update={"limits": Limits()})
        self._runner = asyncio.Runner()
        gates = [Gate(app, lambda: config) for app in (engine(), composed())]
        self._clients = [
            httpx.AsyncClient(
                transport=httpx.ASGITransport(gate, raise_app_exceptions=False),
                base_url="http://test",
                headers=AUTHORIZED,
                timeout=60,
            )
            for gate in gates
        ]

    def replies(self, route: str, body: bytes) -> list[httpx.Response]:
        async def post() -> list[httpx.Response]:
            return [await client.post(route, content=body) for client in self._clients]

        return self._runner.run(post())

    def close(self) -> None:
        self._runner.close()


@pytest.fixture(scope="module")
def paths() -> Iterator[Paths]:
    both = Paths()
    yield both
    both.close()


def assert_same(replies: list[httpx.Response]) -> int:
    direct, through_ingress = replies
    assert direct.status_code == through_ingress.status_code, (direct.text, through_ingress.text)
    if direct.status_code >= 400:
        assert direct.json() == through_ingress.json()
    return direct.status_code


@pytest.mark.parametrize("body", MALICIOUS_BODIES, ids=range(len(MALICIOUS_BODIES)))
@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions"])
def test_malicious_bodies(paths: Paths, route: str, body: bytes) -> None:
    assert assert_same(paths.replies(route, body)) == 400


@pytest.mark.parametrize("seed", [0, 400, 404, 422, 501, 13])
@pytest.mark.parametrize("constrained", [False, True])
def test_errors_of_the_engine(paths: Paths, seed: int, constrained: bool) -> None:
    body: dict[str, Any] = {"messages": [], "seed": seed}
    if constrained:
        body["response_format"] = {"type": "json_object"}
    status = assert_same(paths.replies("/v1/chat/completions", json.dumps(body).encode()))
    expected = seed or 200
    assert status == ((400 if constrained else 500) if seed == 13 else expected)


FIELDS = sorted(set().union(*(POST_ROUTES[route].accepted for route in ROUTES)) | REJECTED.keys())
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
USUAL = st.fixed_dictionaries(
    {},
    optional={
        "messages": st.lists(
            st.fixed_dictionaries({"role": st.just("user"), "content": st.text(max_size=9)}),
            max_size=2,
        ),
        "prompt": st.text(max_size=9),
        "input": st.text(max_size=9),
        "temperature": st.floats(-1, 3),
        "seed": st.sampled_from([0, 13, 400, 404, 422, 501]),
        "max_tokens": st.integers(-1, 20_000),
    },
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    route=st.sampled_from(ROUTES),
    usual=USUAL,
    other=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=2),
)
@example(route="/v1/responses", usual={"input": ""}, other={"reasoning": []})
def test_any_body(paths: Paths, route: str, usual: dict[str, Any], other: dict[str, Any]) -> None:
    if other.get("stream") is True:
        other["stream"] = False
    assert_same(paths.replies(route, json.dumps(usual | other).encode()))
