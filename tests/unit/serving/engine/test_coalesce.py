"""Joined tokens: scripted streams on an event loop with a clock of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from itertools import pairwise
from typing import Any, TypeVar

import pytest

from serving.engine.coalesce import MAX_INTERVAL_S, StreamCoalescer

T = TypeVar("T")
EXACT_S = 1e-6


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time goes to the next timer as soon as nothing else can run."""

    now_s = 0.0

    def time(self) -> float:
        return self.now_s

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.now_s = max(self.now_s, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


def run(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


async def stream_of(items: list[Any], gap_s: float) -> AsyncIterator[Any]:
    for item in items:
        yield item
        await asyncio.sleep(gap_s)


async def packets_of(
    items: list[Any], gap_s: float, coalescer: StreamCoalescer
) -> list[tuple[float, Any]]:
    """The packets of a stream, each with its time in seconds."""
    loop = asyncio.get_running_loop()
    packets = coalescer.coalesce(stream_of(items, gap_s))
    return [(loop.time(), packet) async for packet in packets]


def coalesced(
    items: list[Any], gap_s: float, coalescer: StreamCoalescer
) -> list[tuple[float, Any]]:
    return run(packets_of(items, gap_s, coalescer))


def longest_gap_s(streams: int, interval_s: float) -> float:
    """The longest time between two packets of any of several streams with a token every 10 ms."""
    coalescer = StreamCoalescer(interval_s)

    async def all_streams() -> list[list[tuple[float, Any]]]:
        words = [f"{number} " for number in range(200)]
        each = (packets_of(words, 0.01, coalescer) for _ in range(streams))
        return await asyncio.gather(*each)

    answers = run(all_streams())
    text = "".join(f"{number} " for number in range(200))
    assert all("".join(packet for _, packet in packets) == text for packets in answers)
    return max(
        later - earlier for packets in answers for (earlier, _), (later, _) in pairwise(packets)
    )


@pytest.mark.parametrize(
    ("streams", "interval_s", "expected_s"),
    [
        (1, 0.05, 0.05),
        (16, 0.05, 0.05),
        (64, 0.05, 0.05),
        (128, 0.05, 0.1),
        (640, 0.05, MAX_INTERVAL_S),
        (16, 0.2, 0.2),
        (128, 1.0, 1.0),
        (16, 0.0, 0.01),
    ],
)
def test_the_time_between_packets(streams: int, interval_s: float, expected_s: float) -> None:
    """As configured for up to 64 streams, longer for more; never below the time of a token."""
    assert longest_gap_s(streams, interval_s) == pytest.approx(expected_s, abs=EXACT_S)


def test_nothing_is_lost_and_the_first_item_is_sent_alone() -> None:
    words = [f"{number} " for number in range(40)]
    packets = coalesced(words, 0.01, StreamCoalescer(0.1))
    assert "".join(packet for _, packet in packets) == "".join(words)
    assert packets[0] == (0.0, "0 ")
    # 40 tokens take 0.4 s: the first alone, then one packet per interval.
    assert [round(time_s, 3) for time_s, _ in packets] == [0.0, 0.1, 0.2, 0.3, 0.4]


def test_an_item_after_a_pause_is_sent_at_once() -> None:
    packets = coalesced(["a", "b"], 0.3, StreamCoalescer(0.1))
    assert packets == [(0.0, "a"), (pytest.approx(0.3, abs=EXACT_S), "b")]


def test_an_item_that_is_not_text_is_not_joined() -> None:
    error = {"error": 1}
    packets = coalesced(["a", "b", error], 0.0, StreamCoalescer(0.1))
    assert [packet for _, packet in packets][-1] == error


def test_an_error_of_the_model_reaches_the_reader() -> None:
    async def broken() -> AsyncIterator[str]:
        yield "a"
        raise RuntimeError("the engine died")

    async def read() -> None:
        packets = StreamCoalescer(0.01).coalesce(broken())
        assert await anext(packets) == "a"
        with pytest.raises(RuntimeError, match="the engine died"):
            await anext(packets)

    run(read())


def test_ended_streams_no_longer_count() -> None:
    coalescer = StreamCoalescer(0.05)

    async def interval_s() -> float:
        running: list[Any] = [coalescer.coalesce(stream_of(["a"] * 50, 0.01)) for _ in range(96)]
        for stream in running:
            await anext(stream)
        interval = coalescer.interval_s
        for stream in running:
            await stream.aclose()
        return interval

    assert run(interval_s()) == pytest.approx(0.075)
    assert coalescer.interval_s == 0.05
