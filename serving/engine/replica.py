"""The replica: Ray Serve LLM's own server, behind our gate.

The application names these classes by import path, so that only replicas import vLLM.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from ray import serve
from ray.llm._internal.common.callbacks.base import CallbackBase
from ray.llm._internal.serve.serving_patterns.data_parallel.dp_server import DPServer
from ray.serve.llm.deployment import LLMServer
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from vllm.entrypoints.serve.exception_handling.handlers.vllm_error import generation_error_handler
from vllm.exceptions import GenerationError

from serving.cpu import lower_engine_priority
from serving.engine.coalesce import StreamCoalescer
from serving.engine.engine_args import llm_config
from serving.engine.stats import (
    EngineStats,
    FirstTokens,
    report_cache,
    report_gate,
    reported,
    timed,
)
from serving.engine.warmup import choose_folder, warm_up
from serving.errors import LAST_WORDS
from serving.gateway.asgi import App, error_body, with_replica_header
from serving.gateway.config import GateConfig
from serving.gateway.context import RequestContext
from serving.gateway.gate import Gate, open_gate
from serving.spec.model import ModelSpec

POLL_S = 0.25
LAST_WORDS_S = 0.5
"""How long a replica whose engine died goes on, to tell those it was answering."""


class NoNodeInit(CallbackBase):  # type: ignore[misc]
    """Skip Ray's download task: vLLM loads from a path or the hub by itself.

    The task takes a process that imports vLLM (ten seconds of a core), and Ray records its
    environment, a hub token included.
    """

    async def on_before_node_init(self) -> None:
        self.ctx.run_init_node = False


class EngineReplica(LLMServer):  # type: ignore[misc]
    """One vLLM engine, reached through a deployment handle (the composed path)."""

    async def __init__(self, model: dict[str, Any]) -> None:  # type: ignore[misc]
        hide_hub_token()
        self._asked: asyncio.Future[Any] | None = None
        self._first_tokens = FirstTokens()
        self._packets = StreamCoalescer()
        spec = ModelSpec(**model)
        lower_engine_priority(spec.accelerator)
        self._samples_in_torch = spec.accelerator == "cpu"
        if self._samples_in_torch:
            choose_folder(spec.path)
        try:
            await super().__init__(llm_config(spec))
        except Exception as error:
            raise RuntimeError(last_words(error)) from None

    async def _start_engine(self) -> None:
        # Ray's own version also starts an actor that reports usage, which this project leaves off.
        await self.engine.start()
        if self._samples_in_torch:
            await warm_up(self.engine._engine_client)
        client = self.engine._engine_client
        unfinished = client.output_processor.get_num_unfinished_requests
        self._stats = EngineStats(unfinished, self._first_tokens)
        client.logger_manager.stat_loggers.append(self._stats)
        self._idling = asyncio.create_task(self._stats.stay_fresh(client.logger_manager))
        cache = client.vllm_config.cache_config
        self._telling = asyncio.create_task(report_cache(cache.num_gpu_blocks, cache.block_size))
        self._ending = asyncio.create_task(self._end_with_the_engine())

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve hands to an autoscaling policy (``serving.deploy.autoscaling``)."""
        return reported(self._stats.figures(), [self._first_tokens], None)

    def _batch_output_stream(self, generator: AsyncIterator[Any]) -> AsyncIterator[Any]:
        # Ray's own holds back the first token too, and sends lists to be joined at the ingress.
        return self._packets.of(generator)

    async def _end_with_the_engine(self) -> None:
        """End this process soon after its engine has died, so that nothing more is sent to it.

        Serve would look for three health checks more, and every request sent here until then
        would fail; a process that has ended refuses connections, and HAProxy takes another.
        """
        while not self.engine._engine_client.errored:
            await asyncio.sleep(POLL_S)
        await asyncio.sleep(LAST_WORDS_S)
        os._exit(1)

    async def check_health(self) -> None:
        """Raise if the engine has ended, and wait for a sign of life from it and its workers.

        vLLM's own check only sees an engine that has ended; one that is stopped or stuck would
        hold its requests forever. Serve bounds the wait (``health_check_timeout_s``) and replaces
        the replica after the third miss in a row. One question is asked at a time, so that they
        do not pile up before a slow engine.
        """
        await super().check_health()
        if self._asked is None or self._asked.done():
            client = self.engine._engine_client
            self._asked = asyncio.ensure_future(client.collective_rpc("check_health"))
        await asyncio.shield(self._asked)


class GatedReplica(EngineReplica):
    """The same engine with vLLM's own OpenAI server in front, behind our gate."""

    async def __init__(self, model: dict[str, Any]) -> None:  # type: ignore[misc]
        self._access: GateConfig | None = None
        self._gate: Gate | None = None
        self._answered = FirstTokens()
        await super().__init__(model)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take new keys and limits without a restart."""
        self._access = GateConfig(**user_config["access"])

    async def __serve_build_asgi_app__(self) -> App:
        app = await super().__serve_build_asgi_app__()
        app.add_exception_handler(GenerationError, on_dead_end)
        self._gate = open_gate(app, lambda: self._access)
        self._reporting = asyncio.create_task(report_gate(self._gate))
        gate = timed(self._gate, self._answered)
        return with_replica_header(gate, serve.get_replica_context().replica_id.unique_id)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """The same with the gate's queue, and times to first token that include it."""
        sources = [self._answered, self._first_tokens]
        return reported(self._stats.figures(), sources, self._gate)


@serve.ingress()
class DirectReplica(GatedReplica):
    """A replica that answers clients itself (the direct path)."""


class EngineGroupReplica(EngineReplica, DPServer):  # type: ignore[misc]
    """One rank of a data-parallel group: its engine shares the experts with the other ranks'.

    Ray Serve places and restarts the group as one; `DPServer` tells each rank where rank 0 is.
    """


# Not of DirectReplica: Serve takes no class that is already one of its ASGI applications.
@serve.ingress()
class DirectGroupReplica(GatedReplica, DPServer):  # type: ignore[misc]
    """A rank that answers clients itself."""


async def on_dead_end(request: Request, error: Exception) -> Response:
    """Answer for an engine that gave a request up, which vLLM tells as its own failure.

    A grammar can lead where no token may follow (``root ::= root``); it is the request's then.
    """
    assert isinstance(error, GenerationError)
    if not RequestContext.of(request.scope).constrained:
        return await generation_error_handler(request, error)
    message = "The grammar or schema came to a point from where no token may follow."
    kind, code = "invalid_request_error", "grammar_dead_end"
    return JSONResponse(error_body(message, kind, code), 400)


def hide_hub_token() -> None:
    """Keep a hub token in memory: Ray copies ``HF_TOKEN`` into readable task records.

    The hub's library reads a token from a path; this one is a file of this process that has no
    name on disk, which its engine processes can open while it lives and which ends with it.
    """
    token = os.environ.pop("HF_TOKEN", None) or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    os.environ.pop("HUGGING_FACE_HUB_TOKEN", None)
    if token:
        descriptor = os.memfd_create("hub-token")
        os.write(descriptor, token.encode())
        path = f"/proc/{os.getpid()}/fd/{descriptor}"
        os.environ["HF_TOKEN_PATH"] = path
        import huggingface_hub.constants as constants

        constants.HF_TOKEN_PATH = path


def last_words(error: BaseException) -> str:
    """The error, and what the engine's own processes said went wrong before they ended.

    vLLM logs to standard output and prints tracebacks to standard error; Ray sends this replica's
    to files, which its engine processes share.
    """
    said = [line for stream in (1, 2) for line in _exceptions(_tail(stream))]
    words = dict.fromkeys([*said, f"{type(error).__name__}: {error}"])
    return f"{LAST_WORDS}\n" + "\n".join(words)


def _tail(descriptor: int, size: int = 65536) -> str:
    try:
        with Path(f"/proc/self/fd/{descriptor}").open("rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - size))
            return stream.read().decode("utf-8", "replace")
    except OSError:
        return ""


def _exceptions(text: str) -> list[str]:
    """The lines of a log that name an exception, without process and logger prefixes."""
    prefix = re.compile(r"^(\([^)]*pid=\d+\)\s*)?(ERROR \S+ \S+ \[[^]]*\]\s)?")
    plain = [prefix.sub("", line).rstrip() for line in text.splitlines()]
    return [line for line in plain if re.match(r"[\w.]*(Error|Exception)\b", line)]
