"""What a replica reports: times to first token, the engine's figures, the gate's queue."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from serving.engine.stats import EngineStats, FirstTokens, autoscaling_stats, with_ttft


class ManualClock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class TestFirstTokens:
    def test_percentiles_cover_the_window(self) -> None:
        clock = ManualClock()
        times = FirstTokens(window_s=10, now=clock)
        for seconds in (0.1, 0.2, 0.3, 0.4):
            times.add(seconds)
        assert times.percentiles() == {50: 0.2, 90: 0.4, 99: 0.4}
        clock.now_s = 11
        times.add(0.7)
        assert times.percentiles() == {50: 0.7, 90: 0.7, 99: 0.7}
        clock.now_s = 22
        assert times.percentiles() == {}

    def test_a_request_that_waits_longer_than_the_median_counts_with_its_age(self) -> None:
        clock = ManualClock()
        times = FirstTokens(window_s=10, now=clock)
        times.add(0.5)
        request = times.begin()
        clock.now_s = 0.3
        assert times.percentiles()[99] == 0.5, "no longer than the median so far"
        clock.now_s = 4.0
        assert times.percentiles()[99] == 4.0
        times.dropped(request)
        assert times.percentiles()[99] == 0.5

    def test_a_served_request_counts_once_from_its_beginning(self) -> None:
        clock = ManualClock()
        times = FirstTokens(now=clock)
        request = times.begin()
        clock.now_s = 2.5
        times.served(request)
        times.served(request)
        assert times.percentiles()[50] == 2.5


@pytest.mark.parametrize(
    ("status", "content_type", "count"),
    [(200, b"text/event-stream", 1), (200, b"application/json", 0), (429, b"text/event-stream", 0)],
)
def test_only_streamed_answers_have_a_ttft(status: int, content_type: bytes, count: int) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", content_type)]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for body in (b"", b"data: 1", b"data: 2"):
            await send({"type": "http.response.body", "body": body, "more_body": True})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    times = FirstTokens()
    measured: Any = with_ttft(app, times)
    asyncio.run(measured({"type": "http", "method": "POST"}, None, send))
    assert len(times.percentiles()) == 3 * count
    assert len(sent) == 4


def test_a_comment_that_keeps_a_stream_open_is_no_token() -> None:
    clock = ManualClock()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for body in (b": keep-alive\n\n", b": keep-alive\n\n", b"data: 1\n\n"):
            clock.now_s += 10
            await send({"type": "http.response.body", "body": body, "more_body": True})

    async def send(message: Any) -> None:
        pass

    times = FirstTokens(now=clock)
    measured: Any = with_ttft(app, times)
    asyncio.run(measured({"type": "http", "method": "POST"}, None, send))
    assert times.percentiles()[50] == 30


class TestEngineStats:
    def stats(self, unfinished: int) -> tuple[EngineStats, FirstTokens]:
        first_tokens = FirstTokens()
        stats = EngineStats(lambda: unfinished, first_tokens)
        step = SimpleNamespace(
            num_running_reqs=4, num_waiting_reqs=2, num_skipped_waiting_reqs=1, kv_cache_usage=0.5
        )
        stats.record(step, SimpleNamespace(time_to_first_tokens_iter=[0.25]), None, engine_idx=0)
        stats.record(None, None)
        return stats, first_tokens

    def test_the_last_step_counts_while_requests_are_in_progress(self) -> None:
        stats, first_tokens = self.stats(unfinished=7)
        expected = {"engine_running_requests": 4, "waiting_requests": 3, "kv_cache_usage": 0.5}
        assert stats.figures() == expected
        assert first_tokens.percentiles()[50] == 0.25

    def test_after_an_abort_nothing_runs(self) -> None:
        stats, _ = self.stats(unfinished=0)
        assert set(stats.figures().values()) == {0.0}

    def test_a_replica_reports_the_gates_queue_and_the_best_source_of_ttft(self) -> None:
        stats, engine = self.stats(unfinished=7)
        before_gate = FirstTokens()
        gate: Any = SimpleNamespace(slots=SimpleNamespace(queued=5))
        reported = autoscaling_stats(stats.figures(), [before_gate, engine], gate)
        assert reported["waiting_requests"] == 8
        assert reported["ttft_p90_ms"] == 250
        before_gate.add(1.5)
        reported = autoscaling_stats(stats.figures(), [before_gate, engine], gate)
        assert reported["ttft_p90_ms"] == 1500

    def test_serves_own_count_is_not_overwritten(self) -> None:
        """Serve merges what a replica reports into its own metrics, by name."""
        stats, first_tokens = self.stats(unfinished=7)
        # The name of Serve's own count; compat/test_upstream.py finds it in Serve's source.
        reported = autoscaling_stats(stats.figures(), [first_tokens], None)
        assert "running_requests" not in reported
