"""Back-pressure at one gate: how many requests run, how many wait, and which are refused."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class FullError(Exception):
    """No more requests fit."""


class ConcurrencyLimiter:
    """Limits how many requests run and how many wait; first come, first served.

    Each request passes the limits in force when it arrives, so a changed limit also reaches the
    requests that already wait.
    """

    def __init__(self) -> None:
        self.running = 0
        self._limit = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def queued(self) -> int:
        """Requests waiting for a slot."""
        return sum(not turn.done() for turn in self._waiting)

    @asynccontextmanager
    async def hold(self, limit: int, queue: int) -> AsyncIterator[None]:
        """Hold one slot, waiting for it if necessary.

        Args:
            limit: Requests that may run at once.
            queue: Requests that may wait.

        Raises:
            FullError: No slot is free and the queue is full.
        """
        self._limit = limit
        self._admit()
        await self._acquire(queue)
        try:
            yield
        finally:
            self._release()

    async def _acquire(self, queue: int) -> None:
        if self.running < self._limit and not self.queued:
            self.running += 1
            return
        if self.queued >= queue:
            raise FullError
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release()  # the slot was granted while the client disconnected
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise

    def _release(self) -> None:
        self.running -= 1
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self.running < self._limit:
            turn = self._waiting.popleft()
            if not turn.done():  # done: its client disconnected
                self.running += 1
                turn.set_result(None)
