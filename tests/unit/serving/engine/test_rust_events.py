"""The events of a stream: their usage, and the tokens so far."""

from __future__ import annotations

import json

import pytest

from serving.engine.rust_events import USAGE_EVENT, EventStream, with_metrics

ERROR, DONE = b'data: {"error":{"message":"It failed."}}\n\n', b"data: [DONE]\n\n"


def event(
    output_tokens: int | None, choices: str = '[{"index":0,"delta":{"content":"}"}}]'
) -> bytes:
    """An event as the Rust front end writes it; without usage for None."""
    counts = f'"prompt_tokens":7,"total_tokens":9,"completion_tokens":{output_tokens}'
    usage = "" if output_tokens is None else f',"usage":{{{counts}}}'
    return f'data: {{"id":"1","choices":{choices}{usage}}}\n\n'.encode()


LAST = event(2, "[]")


def test_tokens_so_far_are_those_of_the_newest_event() -> None:
    events = EventStream(5)
    assert events.count() == (5, 0)
    assert events.add(event(0) + event(1) + event(2)[:20]) == event(None) * 2
    assert events.count() == (7, 1)
    assert events.add(event(2)[20:]) == event(None)
    assert events.count() == (7, 2)


@pytest.mark.parametrize("end", [ERROR, DONE, b": a comment\n\n"])
def test_an_event_without_usage_changes_no_count(end: bytes) -> None:
    events = EventStream(5)
    events.add(event(2))
    assert events.add(end) == end
    assert events.count() == (7, 2)


def test_a_large_event_in_many_parts_passes_whole() -> None:
    text = "x" * 1_000_000
    large = event(2, f'[{{"index":0,"delta":{{"content":"{text}"}}}}]')
    events = EventStream(5)
    parts = [events.add(large[start : start + 65_536]) for start in range(0, len(large), 65_536)]
    assert not any(parts[:-1])
    assert parts[-1] == event(None, f'[{{"index":0,"delta":{{"content":"{text}"}}}}]')


def test_metrics_are_added_to_the_last_event() -> None:
    assert USAGE_EVENT in LAST
    assert USAGE_EVENT not in event(2)
    before, last, after = with_metrics(event(None) + LAST + DONE, 0.25, 1.5).split(b"\n\n")[:-1]
    assert [before + b"\n\n", after + b"\n\n"] == [event(None), DONE]
    fields = json.loads(last.removeprefix(b"data: "))
    metrics = {"time_to_first_token_ms": 250.0, "generation_time_ms": 1500.0}
    assert fields == json.loads(LAST.removeprefix(b"data: ")) | {"metrics": metrics}
