"""Swim-lanes of replicas, from samples made by hand."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from workbench.figures.lanes import MAX_SEGMENTS, Lanes, lane_texts

REPLICA: dict[str, Any] = {"replica": "r1", "node": "n1"}


def seen(lanes: Lanes) -> list[list[tuple[str, str, float, float]]]:
    return [[(s.replica, s.state, s.start_s, s.end_s) for s in row.segments] for row in lanes.rows]


def test_replica_passes_through_its_states() -> None:
    lanes = Lanes()
    for second in range(4):
        lanes.observe(time_s=second, **REPLICA, state="starting")
    for second in range(4, 20):
        requests = 2 if second < 10 else 0
        counts: dict[str, Any] = {
            "running_requests": requests,
            "waiting_requests": 0,
            "kv_cache_usage": 0.1234,
        }
        lanes.observe(time_s=second, **REPLICA, state="running", **counts)
    lanes.observe(time_s=20, **REPLICA, state="stopping")
    assert seen(lanes) == [
        [
            ("r1", "starting", 0, 4),
            ("r1", "serving", 4, 12),  # it is idle after three seconds without a request
            ("r1", "idle", 12, 20),
            ("r1", "draining", 20, 20),
        ]
    ]
    assert lanes.rows[0].load() == "0 + 0 · 12.3%"


def test_node_that_does_not_answer_leaves_a_gap() -> None:
    lanes = Lanes()
    for second in (0, 1, 2, 9, 10):
        lanes.observe(time_s=second, **REPLICA, state="running")
    assert seen(lanes) == [[("r1", "serving", 0, 2), ("r1", "serving", 9, 10)]]


def test_row_of_a_replica_that_is_gone_is_used_again() -> None:
    lanes = Lanes()
    lanes.observe(time_s=0, replica="a", node="n")
    lanes.observe(time_s=0, replica="b", node="n")
    lanes.observe(time_s=5, replica="b", node="n")
    lanes.observe(time_s=5, replica="c", node="n")
    assert [row.replica for row in lanes.rows] == ["c", "b"]


def test_number_of_segments_has_a_limit_and_no_time_is_lost() -> None:
    lanes = Lanes()
    for second in range(1000):
        state = "starting" if second % 2 else "running"
        lanes.observe(time_s=second, **REPLICA, state=state)
    (row,) = lanes.rows
    assert len(row.segments) == MAX_SEGMENTS
    assert (row.segments[0].start_s, row.segments[-1].end_s) == (0, 999)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"running_requests": 3, "waiting_requests": 1, "kv_cache_usage": 0.125},
            "r1 on n1: 3 + 1 waiting, KV cache 12.5%",
        ),
        ({"state": "starting"}, "r1 on n1: starting"),
        ({}, "r1 on n1: -"),
    ],
)
def test_hover_text_has_every_replica(fields: dict[str, Any], text: str) -> None:
    samples = pd.DataFrame([{"time_s": 1.0, **REPLICA, **fields}, {"time_s": 2.0, **REPLICA}])
    assert list(lane_texts(samples)) == [(1.0, [text]), (2.0, ["r1 on n1: -"])]
