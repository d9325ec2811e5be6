"""Joins the tokens of a stream that arrive within a short time.

Each item that passes between two deployments costs between a hundred microseconds and a
millisecond, whatever its size. The first item, and one that arrives after a pause, is sent at once.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

PACKET_S = float(os.environ.get("LLM_WORKBENCH_PACKET_S", "0.05"))
"""Tokens of a stream that arrive within this many seconds are sent to the ingress together."""

PACKETS = float(os.environ.get("LLM_WORKBENCH_PACKETS", "200"))
"""Packets per second of all streams of a replica; beyond this, each stream sends fewer."""

MAX_INTERVAL_S = 0.25


class StreamCoalescer:
    """Coalesces the streams of one replica.

    Args:
        packet_s: The shortest time between two packets of a stream, in seconds.
        packets_per_s: With more than ``packets_per_s * packet_s`` streams, the time between
            packets grows with the number of streams, up to ``MAX_INTERVAL_S``.
    """

    def __init__(self, packet_s: float = PACKET_S, packets_per_s: float = PACKETS) -> None:
        self._packet_s, self._packets_per_s = packet_s, packets_per_s
        self._running = 0

    @property
    def interval_s(self) -> float:
        """Seconds between two packets of a stream now."""
        return max(self._packet_s, min(MAX_INTERVAL_S, self._running / self._packets_per_s))

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
