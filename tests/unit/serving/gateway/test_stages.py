"""Stage timings: reported by the server, read by the client, drawn as a waterfall."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pandas as pd
import pytest
from openai._streaming import SSEDecoder

from serving.gateway.asgi import Message
from serving.gateway.stages import STAGES, TIMING_COMMENT, StageTimings, with_server_timing
from workbench.figures.stages import shares_at, stage_frame, stage_shares, stage_waterfall
from workbench.loadgen.sse import parse_answer, stage_times
from workbench.metrics.health import ClientHealth


class TestTimings:
    def test_a_stage_not_passed_is_none_and_repeated_stages_add_up(self) -> None:
        timings = StageTimings()
        timings.add("route", 1.5)
        timings.add("route", 2.0)
        assert timings.ms == dict.fromkeys(STAGES) | {"route": 3.5}

    def test_failing_stages_are_measured(self) -> None:
        timings = StageTimings()
        with pytest.raises(ValueError, match="oops"), timings.measure("guardrail_in"):
            raise ValueError("oops")
        assert timings.ms["guardrail_in"] is not None

    def test_engine_stages_come_from_vllms_metrics(self) -> None:
        timings = StageTimings()
        metrics = {"queue_time_ms": 1.0, "time_to_first_token_ms": 20.0, "generation_time_ms": 50.0}
        timings.set_engine_metrics(metrics)
        assert (timings.ms["queue"], timings.ms["prefill"], timings.ms["decode"]) == (
            1.0,
            20.0,
            50.0,
        )
        timings.set_engine_metrics({})
        assert timings.ms["queue"] is timings.ms["prefill"] is None

    @pytest.mark.parametrize(
        ("first_ms", "total_ms", "queue"),
        [
            (90.0, 150.0, 70.0),  # waiting for a replica is queueing too
            (90.0, 140.0, 70.0),
            (90.0, 120.0, 50.0),  # the engine decoded for 20 ms of it
            (90.0, 90.0, 20.0),  # a whole answer: the first packet is the last one
            (15.0, 80.0, 0.0),
            (60.0, 60.0, 0.0),
        ],
    )
    def test_the_wait_for_a_replica_counts_as_queue(
        self, first_ms: float, total_ms: float, queue: float
    ) -> None:
        timings = StageTimings()
        timings.add_queue_time(first_ms, total_ms)
        assert timings.ms["queue"] is None, "the engine reported no metrics"
        timings.set_engine_metrics({"time_to_first_token_ms": 20.0, "generation_time_ms": 50.0})
        timings.add_queue_time(first_ms, total_ms)
        assert timings.ms["queue"] == queue


class TestHeader:
    def test_the_header_is_standard_and_can_be_read_back(self) -> None:
        timings, other = StageTimings(), StageTimings()
        timings.add("authentication", 0.1234)
        timings.add("route", 2)
        assert timings.to_header() == "authentication;dur=0.123, route;dur=2.000"
        other.read_header("cdn;dur=9, " + timings.to_header() + ", total;desc=x;dur=1")
        assert other.ms == dict.fromkeys(STAGES) | {"authentication": 0.123, "route": 2.0}

    @pytest.mark.parametrize("header", ["", ",;,", "route", "route;dur=x", "route;dur=1e5x", "="])
    def test_unreadable_headers_set_nothing(self, header: str) -> None:
        timings = StageTimings()
        timings.read_header(header)
        assert timings.ms == dict.fromkeys(STAGES)

    def test_every_response_has_the_header(self) -> None:
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        timings = StageTimings()
        timings.add("authentication", 1)
        timed_send = with_server_timing(send, timings)
        start = {"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]}

        async def respond() -> None:
            await timed_send(start)
            await timed_send({"type": "http.response.body", "body": b"x"})

        asyncio.run(respond())
        assert sent[0]["headers"] == [(b"a", b"b"), (b"server-timing", b"authentication;dur=1.000")]
        assert start["headers"] == [(b"a", b"b")]
        assert sent[1] == {"type": "http.response.body", "body": b"x"}


def streamed(*parts: str) -> Any:
    return parse_answer([(1.0, part.encode()) for part in parts])


CHUNK = 'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
DONE = "data: [DONE]\n\n"


class TestClient:
    def test_the_final_comment_is_read(self) -> None:
        timings = StageTimings()
        timings.add("decode", 12.3456)
        answer = streamed(CHUNK, timings.to_comment() + DONE)
        assert answer.done
        assert not answer.garbled
        assert stage_times(answer, "authentication;dur=9") == timings.ms | {"decode": 12.346}

    def test_without_a_comment_the_header_and_vllms_metrics_are_read(self) -> None:
        metrics = {"queue_time_ms": 1, "time_to_first_token_ms": 2, "generation_time_ms": 3.00049}
        last = "data: " + json.dumps({"choices": [], "usage": {}, "metrics": metrics}) + "\n\n"
        read = stage_times(streamed(CHUNK, last, DONE), "authentication;dur=0.5")
        assert read == dict.fromkeys(STAGES) | {
            "authentication": 0.5,
            "queue": 1,
            "prefill": 2,
            "decode": 3.0,
        }

    @pytest.mark.parametrize(
        "line", ["", TIMING_COMMENT + "{", TIMING_COMMENT + "[]", TIMING_COMMENT + '{"a":"b"}']
    )
    def test_without_timings_the_stages_are_none(self, line: str) -> None:
        assert stage_times(streamed(CHUNK, f"{line}\n\n", DONE), None) is None

    def test_text_that_looks_like_the_comment_is_not_read(self) -> None:
        content = json.dumps(
            {"choices": [{"index": 0, "delta": {"content": '\n: stages {"a":1}'}}]}
        )
        assert stage_times(streamed(f"data: {content}\n\n", DONE), None) is None

    def test_openais_decoder_ignores_the_comment(self) -> None:
        stream = httpx.Response(200, content=(CHUNK + StageTimings().to_comment() + DONE).encode())
        data = [event.data for event in SSEDecoder().iter_bytes(stream.iter_bytes())]
        assert data == [CHUNK[6:].strip(), "[DONE]"]


def request_row(sent: float, end: float, status: str = "ok", **ms: float | None) -> dict[str, Any]:
    stages = dict.fromkeys(STAGES) | ms if ms else None
    times = {"sent_s": sent, "end_s": end, "e2el_ms": (end - sent) * 1e3}
    return {**times, "status": status, "model": "m", "stages": stages}


REQUESTS = pd.DataFrame(
    [
        request_row(0.0, 0.1, authentication=1, queue=9, prefill=20, decode=60, guardrail_out=5),
        request_row(1.0, 1.2, authentication=1, queue=19, prefill=20, decode=150, guardrail_out=15),
        request_row(2.0, 2.5, authentication=1, queue=99, prefill=20, decode=300, guardrail_out=25),
        request_row(3.0, 9.0, status="shed", authentication=1),
        request_row(4.0, 9.0),
    ]
)


class TestFigures:
    def test_the_frame_has_the_time_outside_all_stages(self) -> None:
        frame = stage_frame(REQUESTS)
        assert len(frame) == 3, "neither shed requests nor those without timings count"
        assert frame.elsewhere.round(6).tolist() == [10, 10, 80]
        assert frame.guardrail_in.isna().all()

    def test_the_waterfall_shows_medians_in_order(self) -> None:
        (bars,) = stage_waterfall(REQUESTS).data
        drawn = dict(zip(bars.y, zip(bars.base, bars.x, strict=True), strict=True))
        assert drawn == {
            "authentication": (0, 1),
            "queue": (1, 19),
            "prefill": (20, 20),
            "decode": (40, 150),
            "guardrail_out": (40, 15),
            "elsewhere": (190, 10),
        }

    def test_shares_add_up_at_each_percentile(self) -> None:
        shares = shares_at(stage_frame(REQUESTS))
        assert shares.sum(axis=1).round(9).tolist() == [1, 1]
        assert shares.loc[50, "decode"] == pytest.approx(150 / 215)
        assert shares.loc[99, "queue"] == pytest.approx(99 / 525)
        assert shares.attrs["e2el_ms"] == pytest.approx({50: 200, 99: 500})
        figure = stage_shares(REQUESTS)
        assert [bar.name for bar in figure.data] == list(shares.columns)
        assert "guardrail_in" not in shares.columns, "no request passed it"

    @pytest.mark.parametrize("draw", [stage_waterfall, stage_shares])
    def test_without_stages_the_figure_is_empty(self, draw: Any) -> None:
        assert not any(len(trace.x or ()) for trace in draw(REQUESTS.iloc[3:]).data)
        limited = ClientHealth.judge(cpu_share=0.97)
        assert "CLIENT LIMITED" in draw(REQUESTS, health=limited).layout.title.text
