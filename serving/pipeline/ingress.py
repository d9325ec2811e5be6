"""The composed path's ingress: gate, guardrail, model router, models behind handles, guardrail.

It refuses a request before anything queues or wakes up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from time import perf_counter
from typing import Any

import msgspec
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from serving.compat.ray import session_id
from serving.engine.http_call import EngineRequest, Progress, ResponseStart, read_start
from serving.engine.stats import report_gate
from serving.gateway.asgi import BUDGET_HEADER, MODEL_HEADER, App, error_body
from serving.gateway.config import GateConfig
from serving.gateway.context import RequestContext
from serving.gateway.gate import open_gate
from serving.gateway.stages import StageTimings
from serving.guardrail.findings import FindingCounts
from serving.guardrail.guard import Guard, MicroBatcher, RefusedError
from serving.guardrail.guard_model import Ask, GuardModelClient, endpoint_client
from serving.guardrail.stream import GuardedStream, event_data, format_error
from serving.guardrail.texts import RequestTexts
from serving.pipeline.config import PipelineConfig, pick_model
from serving.pipeline.dispatcher import Dispatcher, ModelHealth, StartCall, StartedAnswer
from serving.pipeline.http_app import create_app
from serving.pipeline.validation import RequestValidator
from serving.spec.router import AUTO

DONE = "data: [DONE]\n\n"
"""The end of a stream of chat completions or completions."""
WITHHELD_HEADERS = frozenset({"authorization", "cookie", "proxy-authorization", "content-length"})
"""Headers that the ingress does not pass on."""


@serve.ingress()
class Ingress:
    """The gate, the guardrail and the model router in front of models that may sleep.

    Args:
        models: Handles of the models' deployments, by model id.
        guardrail: Handle of the guardrail's deployment or of the guard model's.
        router: Handle of the model router's deployment.
    """

    def __init__(
        self,
        models: dict[str, DeploymentHandle],
        guardrail: DeploymentHandle | None = None,
        router: DeploymentHandle | None = None,
    ) -> None:
        self._models = {name: handle.options(stream=True) for name, handle in models.items()}
        self._guardrail, self._router = guardrail, router
        self._gate_config: GateConfig | None = None
        self._guard: Guard | None = None
        self._validator = RequestValidator()

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Apply new keys, limits and rules without a restart."""
        self._gate_config = GateConfig(**user_config["access"])
        self._config = PipelineConfig(**user_config["composition"])
        health = ModelHealth(self._config.state_reader(serve.get_replica_context().app_name))
        self._dispatcher = Dispatcher(
            self._config.capacity,
            health,
            self._gate_config.retry_after_s,
            self._gate_config.limits.queue_timeout_s,
        )
        self._guard = self._make_guard()
        if self._config.sleepers:
            self._validator.start()

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
        gate = open_gate(create_app(self.answer), lambda: self._gate_config)
        self._reporting = asyncio.create_task(report_gate(gate))
        return gate

    async def answer(self, request: Request) -> Response:
        """Answer a request that has passed the gate, streamed or whole."""
        context = RequestContext.from_scope(request.scope)
        assert context.body is not None
        texts, counts = RequestTexts(context.path, context.body.fields), FindingCounts()
        if self._guard is not None:
            with context.timings.measure("guardrail_in"):
                await self._guard.check_prompt(texts, counts)
        with context.timings.measure("route"):
            candidates, reason = await self._candidates(texts, request, context)
        if self._config.sleepers.intersection(candidates):
            await self._validator.check(context.body.kind, texts.fields)

        def on_progress(progress: Progress) -> None:
            context.generated = lambda: (progress.prompt_tokens, progress.output_tokens)

        start = self._make_start(texts, request)
        answer = await self._dispatcher.send(candidates, start, on_progress)
        headers = _routing_headers(answer, reason)
        if answer.first.streams:
            context.generated = lambda: (0, 0)  # from here on its events are counted
            if self._guard is not None:
                headers["x-guardrail"] = str(counts)
            stream = self._stream(answer, context, counts)
            return StreamingResponse(stream, headers=headers, media_type="text/event-stream")
        try:
            return await self._whole(answer, context, counts, headers)
        finally:
            answer.rest.cancel()
            self._dispatcher.finish(answer.model)

    async def _candidates(
        self, texts: RequestTexts, request: Request, context: RequestContext
    ) -> tuple[tuple[str, ...], str]:
        """Return the models to try in order, and why the first one is first."""
        name = texts.fields.get("model")
        if self._config.router is None or name not in (None, AUTO):
            return (self._config.model_of(name),), "named"
        budget = request.headers.get(BUDGET_HEADER)
        return await pick_model(self._config, self._router, texts, context, budget)

    def _make_start(self, texts: RequestTexts, request: Request) -> StartCall:
        headers = {k: v for k, v in request.headers.items() if k.lower() not in WITHHELD_HEADERS}
        session = session_id(request.headers)
        name = texts.fields.get("model")

        def start(model: str) -> Any:
            # An adapter keeps its own name at the model that it belongs to.
            named = name if self._config.is_adapter(name) else model
            engine_request = EngineRequest(texts.path, texts.fields | {"model": named}, headers)
            handle = self._models[model]
            handle = handle.options(session_id=session) if session else handle
            return handle.handle_http.remote(engine_request)

        return start

    async def _whole(
        self,
        answer: StartedAnswer,
        context: RequestContext,
        counts: FindingCounts,
        headers: dict[str, str],
    ) -> Response:
        text = await _whole_text(answer.first, answer.rest)
        if answer.first.status == 200:
            content = msgspec.json.decode(text)
            if self._guard is not None:
                with context.timings.measure("guardrail_out"):
                    await self._guard.check_answer(context.path, content, counts)
                text = msgspec.json.encode(content).decode()
                headers["x-guardrail"] = str(counts)
            context.timings.set_engine_metrics(content.get("metrics") or {})
            context.timings.add_queue_time(answer.first_ms, answer.first_ms)
        return Response(text, answer.first.status, headers, answer.first.content_type)

    async def _stream(
        self, answer: StartedAnswer, context: RequestContext, counts: FindingCounts
    ) -> AsyncIterator[str]:
        timings, end = context.timings, _StreamEnd()
        packets: Any = end.remove(answer, timings)
        guarded = None
        if self._guard is not None:
            guarded = GuardedStream(self._guard, context.path, timings, counts)
            packets = guarded.rewrite(packets)
        try:
            async for packet in packets:
                yield packet
        except RefusedError as error:
            number = guarded.sequence_number if guarded is not None else 0
            body = error_body(str(error), error.kind, error.code, error.param)
            yield format_error(context.path, body, number)
        finally:
            answer.rest.cancel()
            self._dispatcher.finish(answer.model)
        findings = f": guardrail {counts}\n\n" if self._guard is not None and counts else ""
        yield f"{findings}{timings.to_comment()}{end.text}"


class _StreamEnd:
    """Takes the end mark from a stream, to send it after the comments that come last.

    Attributes:
        text: The mark, or an empty string for a route whose streams have none.
    """

    text = ""

    async def remove(self, answer: StartedAnswer, timings: StageTimings) -> AsyncIterator[str]:
        """Yield the model's events without the mark; read the engine's metrics from them."""
        packet: str | None = answer.first.text
        while packet is not None:
            if packet.endswith(DONE):
                packet, self.text = packet.removesuffix(DONE), DONE
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


def _routing_headers(answer: StartedAnswer, reason: str) -> dict[str, str]:
    """Return the headers that report which model answers, and why."""
    headers = {MODEL_HEADER: answer.model, "x-routed-reason": reason}
    if answer.skipped:
        headers["x-routed-fallback"] = "; ".join(answer.skipped)
    return headers


async def _whole_text(start: ResponseStart, rest: AsyncIterator[str]) -> str:
    """Return the whole body; a whole answer mostly comes in one part, with nothing to wait for."""
    return start.text if start.whole else start.text + "".join([packet async for packet in rest])


def handle_client(handle: Any, model_id: str) -> Ask:
    """Return a function that asks a guard model through its deployment's handle."""
    streaming = handle.options(stream=True)

    async def ask(fields: dict[str, Any]) -> str:
        path = "/v1/chat/completions" if "messages" in fields else "/v1/completions"
        response = streaming.handle_http.remote(
            EngineRequest(path, {"model": model_id} | fields, {})
        )
        start = await read_start(response, lambda _: None)
        if start.status != 200:
            raise RuntimeError(f"the guard model answered with status {start.status}")
        text = await _whole_text(start, response)
        choice = msgspec.json.decode(text)["choices"][0]
        return str((choice["message"]["content"] if "messages" in fields else choice["text"]) or "")

    return ask
