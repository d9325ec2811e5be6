"""Where a request's time goes: told by the server, kept by the client, drawn as a waterfall."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pandas as pd
import pytest
from openai._streaming import SSEDecoder

from serving.gateway.asgi import Message
from serving.gateway.stages import COMMENT, STAGES, StageTimings, timed
from workbench.figures.stages import shares_at, stage_frame, stage_shares, stage_waterfall
from workbench.loadgen.sse import parse, stages
from workbench.metrics.health import ClientHealth


class TestTheClock:
    def test_a_stage_not_passed_is_none_and_one_entered_twice_is_added_up(self) -> None:
        clock = StageTimings()
        clock.add("route", 1.5)
        clock.add("route", 2.0)
        assert clock.ms == dict.fromkeys(STAGES) | {"route": 3.5}

    def test_what_fails_is_measured_too(self) -> None:
        clock = StageTimings()
        with pytest.raises(ValueError, match="oops"), clock.measure("guardrail_in"):
            raise ValueError("oops")
        assert clock.ms["guardrail_in"] is not None

    def test_the_engines_words_are_vllms(self) -> None:
        clock = StageTimings()
        told = {"queue_time_ms": 1.0, "time_to_first_token_ms": 20.0, "generation_time_ms": 50.0}
        clock.engine(told)
        assert (clock.ms["queue"], clock.ms["prefill"], clock.ms["decode"]) == (1.0, 20.0, 50.0)
        clock.engine({})
        assert clock.ms["queue"] is clock.ms["prefill"] is None

    @pytest.mark.parametrize(
        ("first_ms", "all_ms", "queue"),
        [
            (90.0, 150.0, 70.0),  # the wait for a replica is a queue too
            (90.0, 140.0, 70.0),
            (90.0, 120.0, 50.0),  # for 20 ms of it the engine decoded
            (90.0, 90.0, 20.0),  # a whole answer: all of it was waited for
            (15.0, 80.0, 0.0),
            (60.0, 60.0, 0.0),
        ],
    )
    def test_the_wait_for_a_replica_is_a_queue(
        self, first_ms: float, all_ms: float, queue: float
    ) -> None:
        clock = StageTimings()
        clock.waited(first_ms, all_ms)
        assert clock.ms["queue"] is None, "the engine gave no account"
        clock.engine({"time_to_first_token_ms": 20.0, "generation_time_ms": 50.0})
        clock.waited(first_ms, all_ms)
        assert clock.ms["queue"] == queue


class TestTheHeader:
    def test_it_is_the_standard_one_and_reads_back(self) -> None:
        clock, other = StageTimings(), StageTimings()
        clock.add("authentication", 0.1234)
        clock.add("route", 2)
        assert clock.header() == "authentication;dur=0.123, route;dur=2.000"
        other.read("cdn;dur=9, " + clock.header() + ", total;desc=x;dur=1")
        assert other.ms == dict.fromkeys(STAGES) | {"authentication": 0.123, "route": 2.0}

    @pytest.mark.parametrize("header", ["", ",;,", "route", "route;dur=x", "route;dur=1e5x", "="])
    def test_what_cannot_be_read_is_absent(self, header: str) -> None:
        clock = StageTimings()
        clock.read(header)
        assert clock.ms == dict.fromkeys(STAGES)

    def test_every_answer_bears_it(self) -> None:
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        clock = StageTimings()
        clock.add("authentication", 1)
        told = timed(send, clock)
        start = {"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]}
        asyncio.run(told(start))
        asyncio.run(told({"type": "http.response.body", "body": b"x"}))
        assert sent[0]["headers"] == [(b"a", b"b"), (b"server-timing", b"authentication;dur=1.000")]
        assert start["headers"] == [(b"a", b"b")]
        assert sent[1] == {"type": "http.response.body", "body": b"x"}


def streamed(*parts: str) -> Any:
    return parse([(1.0, part.encode()) for part in parts])


CHUNK = 'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
DONE = "data: [DONE]\n\n"


class TestTheClient:
    def test_a_comment_at_the_end_is_kept(self) -> None:
        clock = StageTimings()
        clock.add("decode", 12.3456)
        answer = streamed(CHUNK, clock.comment() + DONE)
        assert answer.done
        assert not answer.garbled
        assert stages(answer, "authentication;dur=9") == clock.ms | {"decode": 12.346}

    def test_without_one_the_header_and_vllms_metrics_tell(self) -> None:
        metrics = {"queue_time_ms": 1, "time_to_first_token_ms": 2, "generation_time_ms": 3.00049}
        last = "data: " + json.dumps({"choices": [], "usage": {}, "metrics": metrics}) + "\n\n"
        found = stages(streamed(CHUNK, last, DONE), "authentication;dur=0.5")
        assert found == dict.fromkeys(STAGES) | {
            "authentication": 0.5,
            "queue": 1,
            "prefill": 2,
            "decode": 3.0,
        }

    @pytest.mark.parametrize("line", ["", COMMENT + "{", COMMENT + "[]", COMMENT + '{"a":"b"}'])
    def test_a_server_that_tells_nothing_leaves_none(self, line: str) -> None:
        assert stages(streamed(CHUNK, f"{line}\n\n", DONE), None) is None

    def test_text_that_looks_like_the_comment_is_text(self) -> None:
        content = json.dumps(
            {"choices": [{"index": 0, "delta": {"content": '\n: stages {"a":1}'}}]}
        )
        assert stages(streamed(f"data: {content}\n\n", DONE), None) is None

    def test_openais_own_decoder_passes_the_comment_over(self) -> None:
        stream = httpx.Response(200, content=(CHUNK + StageTimings().comment() + DONE).encode())
        data = [event.data for event in SSEDecoder().iter_bytes(stream.iter_bytes())]
        assert data == [CHUNK[6:].strip(), "[DONE]"]


def told(sent: float, end: float, status: str = "ok", **ms: float | None) -> dict[str, Any]:
    stages = dict.fromkeys(STAGES) | ms if ms else None
    times = {"sent_s": sent, "end_s": end, "e2el_ms": (end - sent) * 1e3}
    return {**times, "status": status, "model": "m", "stages": stages}


REQUESTS = pd.DataFrame(
    [
        told(0.0, 0.1, authentication=1, queue=9, prefill=20, decode=60, guardrail_out=5),
        told(1.0, 1.2, authentication=1, queue=19, prefill=20, decode=150, guardrail_out=15),
        told(2.0, 2.5, authentication=1, queue=99, prefill=20, decode=300, guardrail_out=25),
        told(3.0, 9.0, status="shed", authentication=1),
        told(4.0, 9.0),
    ]
)


class TestTheFigures:
    def test_a_frame_has_what_no_stage_accounts_for(self) -> None:
        frame = stage_frame(REQUESTS)
        assert len(frame) == 3, "neither a shed request nor one of a silent server counts"
        assert frame.elsewhere.round(6).tolist() == [10, 10, 80]
        assert frame.guardrail_in.isna().all()

    def test_the_waterfall_shows_medians_end_to_start(self) -> None:
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

    def test_shares_add_up_and_belong_to_their_percentile(self) -> None:
        shares = shares_at(stage_frame(REQUESTS))
        assert shares.sum(axis=1).round(9).tolist() == [1, 1]
        assert shares.loc[50, "decode"] == pytest.approx(150 / 215)
        assert shares.loc[99, "queue"] == pytest.approx(99 / 525)
        assert shares.attrs["e2el_ms"] == pytest.approx({50: 200, 99: 500})
        figure = stage_shares(REQUESTS)
        assert [bar.name for bar in figure.data] == list(shares.columns)
        assert "guardrail_in" not in shares.columns, "no request passed it"

    @pytest.mark.parametrize("draw", [stage_waterfall, stage_shares])
    def test_a_run_without_stages_draws_an_empty_figure(self, draw: Any) -> None:
        assert not any(len(trace.x or ()) for trace in draw(REQUESTS.iloc[3:]).data)
        limited = ClientHealth.judge(cpu_share=0.97)
        assert "CLIENT LIMITED" in draw(REQUESTS, health=limited).layout.title.text
