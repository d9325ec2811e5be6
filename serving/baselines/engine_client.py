"""The replica's end of the pipe: starts the engine's process, sends jobs and receives tokens."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator
from itertools import count
from multiprocessing import Pipe
from typing import Any

from serving.baselines.requests import Event, Job
from serving.errors import ENGINE_ERROR_MARK

ENDED = "the engine's process has ended"


class EngineClient:
    """An engine in a separate process. All methods must be called from one event loop."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._spec = spec
        self._numbers = count()
        self._queues: dict[int, asyncio.Queue[Event]] = {}
        self.stats: dict[str, Any] = {}
        self._failure: str | None = None

    async def start(self) -> None:
        """Start the process, and return once the model is loaded.

        Raises:
            RuntimeError: The model could not be loaded; the message has the engine's error.
        """
        self._loop = asyncio.get_running_loop()
        failure = await asyncio.to_thread(self._spawn)
        if failure is not None:
            raise RuntimeError(f"{ENGINE_ERROR_MARK}\n{failure}")
        threading.Thread(target=self._receive, daemon=True).start()

    def _spawn(self) -> str | None:
        self._pipe, engine_end = Pipe()
        # Ray may have added packages to this interpreter's path; a new interpreter needs them too.
        path = os.pathsep.join(part for part in sys.path if part)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "serving.baselines.engine", str(engine_end.fileno())],
            pass_fds=[engine_end.fileno()],
            stdin=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": path},
        )
        engine_end.close()
        try:
            self._pipe.send(self._spec)
            failure: str | None = self._pipe.recv()
        except (EOFError, OSError):
            return f"RuntimeError: the engine's process ended with status {self._process.wait()}"
        return failure

    async def generate(
        self, prompt: list[int], max_tokens: int, ignore_eos: bool
    ) -> AsyncGenerator[Event, None]:
        """Yield events until the one that ends the answer.

        If the caller stops early, the engine cancels the request.
        """
        job = Job(next(self._numbers), prompt, max_tokens, ignore_eos)
        events = self._queues[job.number] = asyncio.Queue()
        ended = False
        try:
            self._send(tuple(job))
            while not ended:
                event = await events.get()
                ended = event.finish is not None or event.error is not None
                yield event
        finally:
            del self._queues[job.number]
            if not ended:
                self._send(job.number)

    def check(self) -> None:
        """Check that the engine's process runs.

        Raises:
            RuntimeError: It has ended.
        """
        if self._failure is not None or self._process.poll() is not None:
            raise RuntimeError(self._failure or ENDED)

    def stop(self) -> None:
        """End the engine's process."""
        self._pipe.close()
        self._process.terminate()

    def _send(self, message: Any) -> None:
        try:
            self._pipe.send(message)
        except OSError:
            self._fail()

    def _receive(self) -> None:
        try:
            while True:
                self._loop.call_soon_threadsafe(self._dispatch, self._pipe.recv())
        except (EOFError, OSError, RuntimeError):
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._fail)

    def _dispatch(self, message: list[Event] | dict[str, Any]) -> None:
        if isinstance(message, dict):
            self.stats = message
            return
        for event in message:
            if (queue := self._queues.get(event.number)) is not None:
                queue.put_nowait(event)

    def _fail(self) -> None:
        self._failure = ENDED
        for number, queue in self._queues.items():
            queue.put_nowait(Event(number, [], error=ENDED))
