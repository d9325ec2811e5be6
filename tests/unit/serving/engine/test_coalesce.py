"""Joined tokens: against a clock, with many streams and with few."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from serving.engine.coalesce import MAX_INTERVAL_S, StreamCoalescer


async def stream_of(items: list[Any], gap_s: float) -> AsyncIterator[Any]:
    for item in items:
        yield item
        await asyncio.sleep(gap_s)


def coalesced(
    items: list[Any], gap_s: float, coalescer: StreamCoalescer
) -> list[tuple[float, Any]]:
    """The packets of a stream, each with the seconds since its start."""

    async def collect() -> list[tuple[float, Any]]:
        start = time.monotonic()
        packets = coalescer.coalesce(stream_of(items, gap_s))
        return [(time.monotonic() - start, packet) async for packet in packets]

    return asyncio.run(collect())


def test_nothing_is_lost_and_the_first_item_is_sent_alone() -> None:
    words = [f"{number} " for number in range(40)]
    packets = coalesced(words, 0.01, StreamCoalescer(0.1, 1000))
    assert "".join(packet for _, packet in packets) == "".join(words)
    assert packets[0][1] == "0 "
    # The first and the last are sent as soon as possible.
    assert len(packets) <= packets[-1][0] / 0.1 + 2, "at most one packet every 0.1 s"


def test_an_item_after_a_pause_is_sent_at_once() -> None:
    packets = coalesced(["a", "b"], 0.3, StreamCoalescer(0.1, 1000))
    assert [packet for _, packet in packets] == ["a", "b"]


def test_an_item_that_is_not_text_is_not_joined() -> None:
    error = {"error": 1}
    packets = coalesced(["a", "b", error], 0.0, StreamCoalescer(0.1, 1000))
    assert [packet for _, packet in packets][-1] == error


def test_an_error_of_the_model_reaches_the_reader() -> None:
    async def broken() -> AsyncIterator[str]:
        yield "a"
        raise RuntimeError("the engine died")

    async def read() -> None:
        packets = StreamCoalescer(0.01, 1000).coalesce(broken())
        assert await anext(packets) == "a"
        with pytest.raises(RuntimeError, match="the engine died"):
            await anext(packets)

    asyncio.run(read())


def test_the_interval_grows_with_the_number_of_streams_up_to_a_maximum() -> None:
    coalescer = StreamCoalescer(0.05, 200)

    async def interval_s(count: int) -> float:
        running: list[Any] = [coalescer.coalesce(stream_of(["a"] * 50, 0.01)) for _ in range(count)]
        for stream in running:
            await anext(stream)
        interval = coalescer.interval_s
        for stream in running:
            await stream.aclose()
        return interval

    assert [asyncio.run(interval_s(count)) for count in (0, 1, 10, 16, 40, 60)] == [
        0.05,
        0.05,
        0.05,
        pytest.approx(0.08),
        pytest.approx(0.2),
        MAX_INTERVAL_S,
    ]
    assert coalescer.interval_s == 0.05, "ended streams no longer count"
