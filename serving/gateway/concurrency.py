"""Back-pressure at one gate: how many requests are at work, how many wait, who is refused."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class FullError(Exception):
    """As many requests wait as may."""


class ConcurrencyLimiter:
    """First come, first served: ``limit`` at work, ``queue`` waiting, the next one refused.

    Each request brings the limits that hold when it comes, so a change reaches those who wait.
    """

    def __init__(self) -> None:
        self.running = 0
        self._limit = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def queued(self) -> int:
        """Requests that wait for a slot."""
        return sum(not turn.done() for turn in self._waiting)

    @asynccontextmanager
    async def hold(self, limit: int, queue: int) -> AsyncIterator[None]:
        """Hold one slot; raises :class:`FullError` at once where none is to be waited for."""
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
                self._release()  # the slot was given while the client went away
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise

    def _release(self) -> None:
        self.running -= 1
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self.running < self._limit:
            turn = self._waiting.popleft()
            if not turn.done():  # done: its client went away
                self.running += 1
                turn.set_result(None)
