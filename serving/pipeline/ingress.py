"""The composed path's own ingress: gate, guardrail, router, models behind handles, guardrail.

It refuses a request before anything queues or wakes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from time import perf_counter
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.responses import JSONResponse, Response, StreamingResponse

from serving.compat.ray_ingress import (
    DEFAULT_ENDPOINTS,
    ChatCompletionRequest,
    CompletionRequest,
    ErrorResponse,
    IngressBase,
    ModelCard,
    RawRequestInfo,
    sanitize_chat_request,
    session_id_from_headers,
)
from serving.engine.stats import report_gate
from serving.gateway.asgi import MODEL_HEADER, App, error_body
from serving.gateway.gate import GateConfig, open_gate
from serving.gateway.stages import StageTimings
from serving.guardrail.findings import FindingCounts
from serving.guardrail.guard import Guard, MicroBatcher, RefusedError
from serving.guardrail.guard_model import GuardModelClient, asks_endpoint
from serving.guardrail.stream import GuardedStream, as_events, events
from serving.pipeline.config import PipelineConfig, choose
from serving.pipeline.dispatcher import Answer, Dispatcher, Health
from serving.pipeline.http_app import DONE, bare_app
from serving.spec.router import AUTO

GUARDED = ("models", "model_data", "completions", "chat")
"""Routes that exist where a guardrail does: it reads no other's texts."""
WITHHELD = frozenset({"authorization", "cookie", "proxy-authorization"})
"""Headers that go no further than the ingress."""


@serve.ingress()
class Ingress(IngressBase):
    """Ray Serve LLM's OpenAI ingress behind our gate, in front of models that may sleep."""

    async def __init__(  # type: ignore[misc]
        self,
        models: dict[str, DeploymentHandle],
        guardrail: DeploymentHandle | None = None,
        router: DeploymentHandle | None = None,
        guarded: bool = False,
    ) -> None:
        super().__init__(models, {name: _card(name) for name in models})
        self._guardrail, self._router, self._guarded = guardrail, router, guarded
        self._access: GateConfig | None = None
        self._guard: Guard | None = None

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take new keys, limits and rules without a restart."""
        self._access = GateConfig(**user_config["access"])
        self._composition = PipelineConfig(**user_config["composition"])
        app = serve.get_replica_context().app_name
        states = self._composition.states(app)
        self._dispatcher = Dispatcher(
            self._composition.capacity, Health(states), self._access.retry_after_s
        )
        self._guard = self._make_guard()

    def _make_guard(self) -> Guard | None:
        spec = self._composition.guardrail
        if spec is None:
            return None
        if spec.kind == "presidio":
            assert self._guardrail is not None
            handle = self._guardrail
            limit = 4 * spec.scaling.max_replicas
            return Guard(spec, MicroBatcher(lambda texts: handle.check.remote(texts), limit))
        if spec.kind == "endpoint":
            return Guard(spec, GuardModelClient(spec, asks_endpoint(spec)))
        return Guard(
            spec, GuardModelClient(spec, _asks_handle(self._guardrail, spec.model.model_id))
        )

    async def __serve_build_asgi_app__(self) -> App:
        app: FastAPI = bare_app()
        routes = DEFAULT_ENDPOINTS  # Serve builds this before it calls reconfigure
        if self._guarded:
            routes = {name: routes[name] for name in GUARDED}
        for name, route in routes.items():
            route(app)(getattr(self, name))
        app.get("/health")(self._health)
        gate = open_gate(app, lambda: self._access)
        self._reporting = asyncio.create_task(report_gate(gate))
        return gate

    async def _health(self) -> dict[str, str]:
        return {"status": "ok"}

    async def models(self) -> Any:
        """OpenAI's list of models; ``auto`` is one where a router chooses."""
        listed = await super().models()
        if self._composition.router is not None:
            listed.data.append(_card(AUTO))
        return listed

    async def process_request(
        self, body: Any, call_method: str, raw_request: Request | None = None
    ) -> Response:
        """A chat completion, completion or transcription, streamed or whole."""
        assert raw_request is not None
        stages: StageTimings = raw_request.scope["stages"]
        tally = FindingCounts()
        if self._guard is not None:
            with stages.measure("guardrail_in"):
                await self._guard.prompt(body, tally)
        with stages.measure("route"):
            candidates, reason = await self._candidates(body, raw_request)
        start = self._starter(body, call_method, raw_request)
        answer = await self._dispatcher.send(candidates, start)
        headers = _told(answer, reason)
        if isinstance(answer.first, str):
            stream = self._stream(answer, stages, tally)
            if self._guard is not None:
                headers["x-guardrail"] = str(tally)
            return StreamingResponse(stream, headers=headers, media_type="text/event-stream")
        self._dispatcher.ended(answer.model)
        return await self._whole(answer, stages, tally, headers)

    async def _candidates(self, body: Any, request: Request) -> tuple[tuple[str, ...], str]:
        """The models to try, in their order, and why the first stands first."""
        tenant = request.scope.get("tenant")
        if self._composition.router is None or body.model not in (None, AUTO):
            return (await self.resolve_model(body.model),), "named"
        return await choose(self._composition, self._router, body, request.headers, tenant)

    def _starter(self, body: Any, call_method: str, request: Request) -> Any:
        if hasattr(body, "messages"):
            body = sanitize_chat_request(body)
        headers = {k: v for k, v in request.headers.items() if k.lower() not in WITHHELD}
        session = session_id_from_headers(request.headers)

        def start(model: str) -> Any:
            body.model = model
            handle = self.model_handle(model)
            handle = handle.options(session_id=session) if session else handle
            return getattr(handle, call_method).remote(body, RawRequestInfo(headers=headers))

        return start

    async def _whole(
        self, answer: Answer, stages: StageTimings, tally: FindingCounts, headers: dict[str, str]
    ) -> Response:
        if isinstance(answer.first, ErrorResponse):
            error = answer.first.error
            told = error_body(error.message, error.type, None)
            return JSONResponse(told, error.code, headers)
        if self._guard is not None:
            with stages.measure("guardrail_out"):
                await self._guard.answer(answer.first, tally)
            headers["x-guardrail"] = str(tally)
        content = answer.first.model_dump()
        stages.engine(content.get("metrics") or {})
        stages.waited(answer.waited_ms, answer.waited_ms)
        return JSONResponse(content, headers=headers)

    async def _stream(
        self, answer: Answer, stages: StageTimings, tally: FindingCounts
    ) -> AsyncIterator[str]:
        packets: Any = self._packets(answer, stages)
        if self._guard is not None:
            packets = GuardedStream(self._guard, stages, tally).rewrite(packets)
        try:
            async for packet in packets:
                yield packet
        except RefusedError as error:
            body = error_body(str(error), error.kind, error.code)
            yield as_events([msgspec.json.encode(body).decode()])
        finally:
            answer.rest.cancel()
            self._dispatcher.ended(answer.model)
        ending = f": guardrail {tally}\n\n" if self._guard is not None and tally else ""
        yield f"{ending}{stages.comment()}{DONE}"

    async def _packets(self, answer: Answer, stages: StageTimings) -> AsyncIterator[str]:
        """The model's events without ``[DONE]``; what they tell of the stages is taken over."""
        packet: Any = answer.first
        while packet is not None:
            packet = packet.removesuffix(DONE)
            if '"metrics":' in packet:
                for data in events(packet):
                    told = msgspec.json.decode(data)
                    if not told.get("choices") and told.get("metrics"):
                        stages.engine(told["metrics"])
                        stages.waited(answer.waited_ms, (perf_counter() - answer.began_s) * 1e3)
            if packet:
                yield packet
            packet = await anext(answer.rest, None)


def _card(name: str) -> ModelCard:
    return ModelCard(id=name, object="model", owned_by="workbench", permission=[], metadata={})


def _told(answer: Answer, reason: str) -> dict[str, str]:
    """Which model answers, and why."""
    told = {MODEL_HEADER: answer.model, "x-routed-reason": reason}
    return told | ({"x-routed-fallback": "; ".join(answer.skipped)} if answer.skipped else {})


def _asks_handle(handle: Any, model_id: str) -> Any:
    """Asks a guard model's deployment."""
    streaming = handle.options(stream=True)

    async def ask(fields: dict[str, Any]) -> str:
        if "messages" in fields:
            call, request = streaming.chat, ChatCompletionRequest(model=model_id, **fields)
        else:
            call, request = streaming.completions, CompletionRequest(model=model_id, **fields)
        answer = await anext(call.remote(request, None))
        if isinstance(answer, ErrorResponse):
            raise RuntimeError(answer.error.type)
        choice = answer.choices[0]
        return str((choice.message.content if "messages" in fields else choice.text) or "")

    return ask
