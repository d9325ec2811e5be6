"""Whether the processes of an engine answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol

WORKERS_EVERY_S = 60.0
"""Seconds between two checks of the workers. vLLM's workers spin for a second after each call, so
checks every few seconds would take a fifth of a core of an idle replica. While there are requests,
the core waits for its workers, so a check of the core notices a worker that does not answer."""


class Engine(Protocol):
    """The part of vLLM's engine client that checks need."""

    async def is_sleeping(self) -> bool:
        """Return whether the engine sleeps, as the engine core knows it."""

    async def collective_rpc(self, method: str) -> Any:
        """Call a method of every worker."""


class EngineHealth:
    """Checks an engine, with one check at a time: they must not pile up in front of a slow one."""

    def __init__(self, client: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self._client, self._clock = client, clock
        self._workers_due_s = clock()
        self._check: asyncio.Future[Any] | None = None

    async def check(self) -> None:
        """Wait until the engine core answers, and also its workers once a minute.

        Raises:
            Exception: What the engine raises if it has failed.
        """
        if self._check is None or self._check.done():
            self._check = asyncio.ensure_future(self._ask())
        await asyncio.shield(self._check)

    async def _ask(self) -> None:
        await self._client.is_sleeping()  # The core answers this without its workers.
        if self._clock() >= self._workers_due_s:
            await self._client.collective_rpc("check_health")
            self._workers_due_s = self._clock() + WORKERS_EVERY_S
