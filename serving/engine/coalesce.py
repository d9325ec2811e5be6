"""Joins the tokens of a stream that arrive within a short time.

Each item that passes between two deployments costs between a hundred microseconds and a
millisecond, whatever its size. The first item, and one that arrives after a pause, is sent at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

STREAMS = 64
"""Streams of a replica up to which the interval is as configured."""

MAX_INTERVAL_S = 0.25
"""The longest interval that more streams lead to."""


class StreamCoalescer:
    """Coalesces the streams of one replica.

    Args:
        interval_s: The time between two packets of a stream, in seconds. With more than
            ``STREAMS`` streams it grows with their number, up to ``MAX_INTERVAL_S``, so that the
            packets per second of all streams do not.
    """

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._running = 0

    @property
    def interval_s(self) -> float:
        """Seconds between two packets of a stream now."""
        grown_s = self._interval_s * self._running / STREAMS
        return max(self._interval_s, min(MAX_INTERVAL_S, grown_s))

    async def coalesce(self, items: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """Yield the items, with texts joined to at most one packet per interval.

        An item that is not a text is yielded on its own.
        """
        waiting: list[Any] = []
        arrived = asyncio.Event()
        reader = asyncio.create_task(_read(items, waiting, arrived))
        loop = asyncio.get_running_loop()
        sent_s = float("-inf")
        self._running += 1
        try:
            while waiting or not reader.done():
                if not waiting:
                    arrived.clear()
                    await arrived.wait()
                pause_s = sent_s + self.interval_s - loop.time()
                if pause_s > 0 and not reader.done():
                    await asyncio.wait({reader}, timeout=pause_s)
                sent_s = loop.time()
                batch, waiting[:] = waiting[:], []
                for packet in _joined(batch):
                    yield packet
            reader.result()
        finally:
            self._running -= 1
            reader.cancel()


async def _read(items: AsyncIterator[Any], waiting: list[Any], arrived: asyncio.Event) -> None:
    try:
        async for item in items:
            waiting.append(item)
            arrived.set()
    finally:
        arrived.set()


def _joined(items: list[Any]) -> list[Any]:
    if all(isinstance(item, str) for item in items):
        return ["".join(items)] if items else []
    return items
