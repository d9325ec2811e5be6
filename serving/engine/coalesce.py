"""A stream of tokens in packets: what comes within a short time travels together.

Between two deployments each item costs some hundred microseconds to a millisecond, whatever its
size. The first item goes at once, and so does one that comes after a pause, so that neither waits
for company.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

PACKET_S = float(os.environ.get("LLM_WORKBENCH_PACKET_S", "0.05"))
"""Tokens of a stream that come within this many seconds travel to the ingress together."""

PACKETS = float(os.environ.get("LLM_WORKBENCH_PACKETS", "200"))
"""Packets a second of all streams of a replica, beyond which each stream's become longer."""

LONGEST_S = 0.25


class StreamCoalescer:
    """The streams of one replica, whose packets are the longer the more of them run.

    ``packet_s`` is the shortest time between two packets of a stream, in seconds; with more than
    ``packets_per_s * packet_s`` streams it grows with their number, up to `LONGEST_S`.
    """

    def __init__(self, packet_s: float = PACKET_S, packets_per_s: float = PACKETS) -> None:
        self._packet_s, self._packets_per_s = packet_s, packets_per_s
        self._running = 0

    @property
    def interval_s(self) -> float:
        """Seconds between two packets of a stream now."""
        return max(self._packet_s, min(LONGEST_S, self._running / self._packets_per_s))

    async def of(self, items: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """Texts joined, at most one packet an interval; anything else as it is, on its own."""
        waiting: list[Any] = []
        came = asyncio.Event()

        async def read() -> None:
            try:
                async for item in items:
                    waiting.append(item)
                    came.set()
            finally:
                came.set()

        reader = asyncio.create_task(read())
        loop = asyncio.get_running_loop()
        sent = float("-inf")
        self._running += 1
        try:
            while waiting or not reader.done():
                if not waiting:
                    came.clear()
                    await came.wait()
                left = sent + self.interval_s - loop.time()
                if left > 0 and not reader.done():
                    await asyncio.wait({reader}, timeout=left)
                sent = loop.time()
                taken, waiting[:] = waiting[:], []
                for packet in _joined(taken):
                    yield packet
            reader.result()
        finally:
            self._running -= 1
            reader.cancel()


def _joined(items: list[Any]) -> list[Any]:
    if all(isinstance(item, str) for item in items):
        return ["".join(items)] if items else []
    return items
