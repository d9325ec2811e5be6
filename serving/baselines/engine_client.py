"""The replica's end of the pipe: starts the engine's process, gives it jobs, passes tokens on."""

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


class Engine:
    """One engine in a process of its own. All methods belong to one event loop."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._spec = spec
        self._numbers = count()
        self._waiting: dict[int, asyncio.Queue[Event]] = {}
        self.stats: dict[str, Any] = {}
        self._ended: str | None = None

    async def start(self) -> None:
        """Return once the model is loaded.

        Raises RuntimeError with the engine's last words if that fails.
        """
        self._loop = asyncio.get_running_loop()
        failure = await asyncio.to_thread(self._spawn)
        if failure is not None:
            raise RuntimeError(f"{ENGINE_ERROR_MARK}\n{failure}")
        threading.Thread(target=self._read, daemon=True).start()

    def _spawn(self) -> str | None:
        self._pipe, theirs = Pipe()
        # The packages may be here by Ray's doing, which a new interpreter knows nothing of.
        path = os.pathsep.join(part for part in sys.path if part)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "serving.baselines.engine", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": path},
        )
        theirs.close()
        try:
            self._pipe.send(self._spec)
            failure: str | None = self._pipe.recv()
        except (EOFError, OSError):
            return f"RuntimeError: the engine's process ended with {self._process.wait()}"
        return failure

    async def generate(
        self, prompt: list[int], max_tokens: int, ignore_eos: bool
    ) -> AsyncGenerator[Event, None]:
        """Events until the one that ends the answer; left early, the engine forgets the request."""
        job = Job(next(self._numbers), prompt, max_tokens, ignore_eos)
        events = self._waiting[job.number] = asyncio.Queue()
        over = False
        try:
            self._tell(tuple(job))
            while not over:
                event = await events.get()
                over = event.finish is not None or event.error is not None
                yield event
        finally:
            del self._waiting[job.number]
            if not over:
                self._tell(job.number)

    def check(self) -> None:
        """Raise RuntimeError if the engine's process has ended."""
        if self._ended is not None or self._process.poll() is not None:
            raise RuntimeError(self._ended or "the engine's process has ended")

    def stop(self) -> None:
        """End the engine's process."""
        self._pipe.close()
        self._process.terminate()

    def _tell(self, message: Any) -> None:
        try:
            self._pipe.send(message)
        except OSError:
            self._lost()

    def _read(self) -> None:
        try:
            while True:
                self._loop.call_soon_threadsafe(self._take, self._pipe.recv())
        except (EOFError, OSError, RuntimeError):
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._lost)

    def _take(self, message: list[Event] | dict[str, Any]) -> None:
        if isinstance(message, dict):
            self.stats = message
            return
        for event in message:
            if (waiting := self._waiting.get(event.number)) is not None:
                waiting.put_nowait(event)

    def _lost(self) -> None:
        self._ended = "the engine's process has ended"
        for number, waiting in self._waiting.items():
            waiting.put_nowait(Event(number, [], error=self._ended))
