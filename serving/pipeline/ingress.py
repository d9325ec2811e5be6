"""The composed path's ingress: gate, guardrail, model router, models behind handles, guardrail.

It refuses a request before anything queues or wakes up.
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
from serving.gateway.config import GateConfig
from serving.gateway.context import RequestContext
from serving.gateway.gate import open_gate
from serving.gateway.stages import StageTimings
from serving.guardrail.findings import FindingCounts
from serving.guardrail.guard import Guard, MicroBatcher, RefusedError
from serving.guardrail.guard_model import Ask, GuardModelClient, endpoint_client
from serving.guardrail.stream import GuardedStream, event_data, format_events
from serving.guardrail.texts import RequestTexts
from serving.pipeline.config import PipelineConfig, pick_model
from serving.pipeline.dispatcher import Dispatcher, ModelHealth, StartCall, StartedAnswer
from serving.pipeline.http_app import DONE, create_app
from serving.spec.router import AUTO

GUARDED_ENDPOINTS = ("models", "model_data", "completions", "chat")
"""Endpoints that exist behind a guardrail, which does not read the texts of others."""
WITHHELD_HEADERS = frozenset({"authorization", "cookie", "proxy-authorization"})
"""Headers that the ingress does not pass on."""


@serve.ingress()
class Ingress(IngressBase):
    """Ray Serve LLM's OpenAI ingress behind the gate, in front of models that may sleep.

    Args:
        models: Handles of the models' deployments, by model id.
        guardrail: Handle of the guardrail's deployment or of the guard model's.
        router: Handle of the model router's deployment.
        guarded: Whether there is a guardrail of any kind.
    """

    async def __init__(  # type: ignore[misc]
        self,
        models: dict[str, DeploymentHandle],
        guardrail: DeploymentHandle | None = None,
        router: DeploymentHandle | None = None,
        guarded: bool = False,
    ) -> None:
        super().__init__(models, {name: _model_card(name) for name in models})
        self._guardrail, self._router, self._guarded = guardrail, router, guarded
        self._gate_config: GateConfig | None = None
        self._guard: Guard | None = None

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Apply new keys, limits and rules without a restart."""
        self._gate_config = GateConfig(**user_config["access"])
        self._config = PipelineConfig(**user_config["composition"])
        health = ModelHealth(self._config.down_reader(serve.get_replica_context().app_name))
        self._dispatcher = Dispatcher(
            self._config.capacity, health, self._gate_config.retry_after_s
        )
        self._guard = self._make_guard()

    def _make_guard(self) -> Guard | None:
        spec = self._config.guardrail
        if spec is None:
            return None
        if spec.kind == "presidio":
            assert self._guardrail is not None
            handle = self._guardrail
            limit = 4 * spec.scaling.max_replicas
            return Guard(spec, MicroBatcher(lambda texts: handle.inspect.remote(texts), limit))
        if spec.kind == "endpoint":
            return Guard(spec, GuardModelClient(spec, endpoint_client(spec)))
        return Guard(
            spec, GuardModelClient(spec, handle_client(self._guardrail, spec.model.model_id))
        )

    async def __serve_build_asgi_app__(self) -> App:
        app: FastAPI = create_app()
        endpoints = DEFAULT_ENDPOINTS  # Serve builds this before it calls reconfigure
        if self._guarded:
            endpoints = {name: endpoints[name] for name in GUARDED_ENDPOINTS}
        for name, decorator in endpoints.items():
            decorator(app)(getattr(self, name))
        app.get("/health")(self._health)
        gate = open_gate(app, lambda: self._gate_config)
        self._reporting = asyncio.create_task(report_gate(gate))
        return gate

    async def _health(self) -> dict[str, str]:
        return {"status": "ok"}

    async def models(self) -> Any:
        """List the models as OpenAI does, with ``auto`` if there is a model router."""
        response = await super().models()
        if self._config.router is not None:
            response.data.append(_model_card(AUTO))
        return response

    async def process_request(
        self, body: Any, call_method: str, raw_request: Request | None = None
    ) -> Response:
        """Answer a chat completion, completion or transcription, streamed or whole."""
        assert raw_request is not None
        context = RequestContext.from_scope(raw_request.scope)
        texts, counts = RequestTexts(body), FindingCounts()
        if self._guard is not None:
            with context.timings.measure("guardrail_in"):
                await self._guard.check_prompt(texts, counts)
        with context.timings.measure("route"):
            candidates, reason = await self._candidates(texts, raw_request, context)
        start = self._make_start(body, call_method, raw_request)
        answer = await self._dispatcher.send(candidates, start)
        headers = _routing_headers(answer, reason)
        if isinstance(answer.first, str):
            stream = self._stream(answer, context.timings, counts)
            if self._guard is not None:
                headers["x-guardrail"] = str(counts)
            return StreamingResponse(stream, headers=headers, media_type="text/event-stream")
        self._dispatcher.finish(answer.model)
        return await self._whole(answer, context.timings, counts, headers)

    async def _candidates(
        self, texts: RequestTexts, request: Request, context: RequestContext
    ) -> tuple[tuple[str, ...], str]:
        """Return the models to try in order, and why the first one is first."""
        model = texts.body.model
        if self._config.router is None or model not in (None, AUTO):
            return (await self.resolve_model(model),), "named"
        return await pick_model(self._config, self._router, texts, request.headers, context.tenant)

    def _make_start(self, body: Any, call_method: str, request: Request) -> StartCall:
        if hasattr(body, "messages"):
            body = sanitize_chat_request(body)
        headers = {k: v for k, v in request.headers.items() if k.lower() not in WITHHELD_HEADERS}
        session_id = session_id_from_headers(request.headers)

        def start(model: str) -> Any:
            body.model = model
            handle = self.model_handle(model)
            handle = handle.options(session_id=session_id) if session_id else handle
            return getattr(handle, call_method).remote(body, RawRequestInfo(headers=headers))

        return start

    async def _whole(
        self,
        answer: StartedAnswer,
        timings: StageTimings,
        counts: FindingCounts,
        headers: dict[str, str],
    ) -> Response:
        if isinstance(answer.first, ErrorResponse):
            error = answer.first.error
            return JSONResponse(error_body(error.message, error.type, None), error.code, headers)
        if self._guard is not None:
            with timings.measure("guardrail_out"):
                await self._guard.check_answer(answer.first, counts)
            headers["x-guardrail"] = str(counts)
        content = answer.first.model_dump()
        timings.set_engine_metrics(content.get("metrics") or {})
        timings.add_queue_time(answer.first_ms, answer.first_ms)
        return JSONResponse(content, headers=headers)

    async def _stream(
        self, answer: StartedAnswer, timings: StageTimings, counts: FindingCounts
    ) -> AsyncIterator[str]:
        packets: Any = self._packets(answer, timings)
        if self._guard is not None:
            packets = GuardedStream(self._guard, timings, counts).rewrite(packets)
        try:
            async for packet in packets:
                yield packet
        except RefusedError as error:
            body = error_body(str(error), error.kind, error.code)
            yield format_events([msgspec.json.encode(body).decode()])
        finally:
            answer.rest.cancel()
            self._dispatcher.finish(answer.model)
        findings = f": guardrail {counts}\n\n" if self._guard is not None and counts else ""
        yield f"{findings}{timings.to_comment()}{DONE}"

    async def _packets(self, answer: StartedAnswer, timings: StageTimings) -> AsyncIterator[str]:
        """Yield the model's events without ``[DONE]``; read the engine's metrics from them."""
        packet: Any = answer.first
        while packet is not None:
            packet = packet.removesuffix(DONE)
            if '"metrics":' in packet:
                _read_metrics(packet, answer, timings)
            if packet:
                yield packet
            packet = await anext(answer.rest, None)


def _read_metrics(packet: str, answer: StartedAnswer, timings: StageTimings) -> None:
    for data in event_data(packet):
        event = msgspec.json.decode(data)
        if not event.get("choices") and event.get("metrics"):
            timings.set_engine_metrics(event["metrics"])
            timings.add_queue_time(answer.first_ms, (perf_counter() - answer.started_s) * 1e3)


def _model_card(name: str) -> ModelCard:
    return ModelCard(id=name, object="model", owned_by="workbench", permission=[], metadata={})


def _routing_headers(answer: StartedAnswer, reason: str) -> dict[str, str]:
    """Return the headers that report which model answers, and why."""
    headers = {MODEL_HEADER: answer.model, "x-routed-reason": reason}
    if answer.skipped:
        headers["x-routed-fallback"] = "; ".join(answer.skipped)
    return headers


def handle_client(handle: Any, model_id: str) -> Ask:
    """Return a function that asks a guard model through its deployment's handle."""
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
