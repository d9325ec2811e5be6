"""Tokens that travel together: against a clock, with many streams and with few."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from serving.engine.coalesce import LONGEST_S, StreamCoalescer


async def spoken(items: list[Any], gap_s: float) -> AsyncIterator[Any]:
    for item in items:
        yield item
        await asyncio.sleep(gap_s)


def packets_of(items: list[Any], gap_s: float, packets: StreamCoalescer) -> list[tuple[float, Any]]:
    async def go() -> list[tuple[float, Any]]:
        began = time.monotonic()
        stream = packets.of(spoken(items, gap_s))
        return [(time.monotonic() - began, packet) async for packet in stream]

    return asyncio.run(go())


def test_nothing_is_lost_and_the_first_waits_for_nobody() -> None:
    words = [f"{number} " for number in range(40)]
    found = packets_of(words, 0.01, StreamCoalescer(0.1, 1000))
    assert "".join(packet for _, packet in found) == "".join(words)
    assert found[0][1] == "0 "
    # The first and the last go when they can.
    assert len(found) <= found[-1][0] / 0.1 + 2, "a packet every 0.1 s at most"


def test_after_a_pause_a_word_goes_at_once() -> None:
    found = packets_of(["a", "b"], 0.3, StreamCoalescer(0.1, 1000))
    assert [packet for _, packet in found] == ["a", "b"]


def test_what_is_no_text_is_not_joined() -> None:
    error = {"error": 1}
    found = packets_of(["a", "b", error], 0.0, StreamCoalescer(0.1, 1000))
    assert [packet for _, packet in found][-1] == error


def test_an_error_of_the_model_reaches_whoever_reads() -> None:
    async def broken() -> AsyncIterator[str]:
        yield "a"
        raise RuntimeError("the engine died")

    async def go() -> None:
        stream = StreamCoalescer(0.01, 1000).of(broken())
        assert await anext(stream) == "a"
        with pytest.raises(RuntimeError, match="the engine died"):
            await anext(stream)

    asyncio.run(go())


def test_the_more_streams_the_longer_the_packets_and_no_longer_than_the_longest() -> None:
    packets = StreamCoalescer(0.05, 200)

    async def go(streams: int) -> float:
        running = [packets.of(spoken(["a"] * 50, 0.01)) for _ in range(streams)]
        for stream in running:
            await anext(stream)
        found = packets.interval_s
        for stream in running:
            await stream.aclose()
        return found

    assert [asyncio.run(go(streams)) for streams in (0, 1, 10, 16, 40, 60)] == [
        0.05,
        0.05,
        0.05,
        pytest.approx(0.08),
        pytest.approx(0.2),
        LONGEST_S,
    ]
    assert packets.interval_s == 0.05, "those that ended no longer count"
