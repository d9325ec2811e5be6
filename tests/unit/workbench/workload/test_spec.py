"""The plan of a load depends on the seed alone, and mistakes are rejected before it starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serving.errors import SpecError
from workbench.errors import SettingError, TraceError
from workbench.workload.arrivals import ClosedLoop, Constant, Poisson, Ramp, TraceReplay
from workbench.workload.prompts import Conversations, FilePrompts, FromTrace, RandomPrompts
from workbench.workload.spec import LoadSpec, make_plan, plan_digest
from workbench.workload.tokenizer import load_tokenizer

TINY = load_tokenizer("tiny")
SMALL = RandomPrompts(input=8, output=4)


def spec(**fields: Any) -> LoadSpec:
    return LoadSpec(**{"arrivals": Poisson(rate=5), "prompts": SMALL, "count": 20} | fields)


def test_same_seed_gives_the_same_plan() -> None:
    first, again, other = (make_plan(spec(seed=s), TINY) for s in (3, 3, 4))
    assert first == again
    assert plan_digest(first) == plan_digest(again) != plan_digest(other)


def test_round_trip_through_json_gives_the_same_plan() -> None:
    mine = spec(prompts=RandomPrompts(input={"kind": "uniform", "low": 4, "high": 9}, output=3))
    back = LoadSpec.model_validate(json.loads(json.dumps(mine.model_dump(mode="json"))))
    assert plan_digest(make_plan(back, TINY)) == plan_digest(make_plan(mine, TINY))


def test_arrivals_do_not_change_the_prompts() -> None:
    arrivals = [make_plan(spec(arrivals=a), TINY) for a in (Poisson(rate=5), Constant(rate=50))]
    assert [s.turns for s in arrivals[0]] == [s.turns for s in arrivals[1]]
    assert [s.at_s for s in arrivals[0]] != [s.at_s for s in arrivals[1]]


def test_conversation_is_one_arrival() -> None:
    chats = Conversations(turns=3, input=5, output=4, think_s=1.0)
    arrivals = make_plan(spec(prompts=chats, count=4), TINY)
    assert [len(arrival.turns) for arrival in arrivals] == [3] * 4
    assert [prompt.turn for prompt in arrivals[2].turns] == [0, 1, 2]


def test_closed_loop_has_no_times_and_needs_a_count() -> None:
    arrivals = make_plan(spec(arrivals=ClosedLoop(max_concurrency=2), count=5), TINY)
    assert [arrival.at_s for arrival in arrivals] == [None] * 5
    with pytest.raises(SpecError, match="count"):
        spec(arrivals=ClosedLoop(max_concurrency=2), count=None)


def test_think_time_precedes_the_first_turn() -> None:
    chats = Conversations(turns=2, input=5, output=4, think_s=1.0)
    users, slots = (
        make_plan(
            spec(arrivals=ClosedLoop(max_concurrency=2, think_s=s), prompts=chats, count=500), TINY
        )
        for s in (3.0, 0.0)
    )
    assert [[p.content for p in u.turns] for u in users] == [
        [p.content for p in s.turns] for s in slots
    ]
    assert [u.turns[1] for u in users] == [s.turns[1] for s in slots]
    assert {s.turns[0].think_s for s in slots} == {0.0}
    # The mean of 500 exponential waits of 3 s is within 3 +- 4 x 3 / sqrt(500).
    assert 2.46 < sum(u.turns[0].think_s for u in users) / 500 < 3.54


def test_trace_gives_times_and_lengths(tmp_path: Path) -> None:
    lines = [
        {"timestamp": 1000 * i, "input_length": 5 + i, "output_length": 2 + i, "hash_ids": []}
        for i in range(4)
    ]
    file = tmp_path / "mooncake.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    prompts = RandomPrompts(input=FromTrace(), output=FromTrace())
    replay = TraceReplay(path=str(file), speed=2, time_unit="ms")
    arrivals = make_plan(spec(arrivals=replay, prompts=prompts, count=None), TINY)
    assert [arrival.at_s for arrival in arrivals] == [0, 0.5, 1, 1.5]
    lengths = [(s.turns[0].prompt_tokens, s.turns[0].max_tokens) for s in arrivals]
    assert lengths == [(5, 2), (6, 3), (7, 4), (8, 5)]


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"arrivals": {"kind": "poisson", "rate": 0}}, "rate"),
        ({"duration_s": 5, "warmup_s": 5}, "warmup_s"),
        ({"count": 0}, "count"),
        ({"speling": 1}, "speling"),
        ({"workers": 0}, "workers"),
    ],
)
def test_invalid_field_is_named(fields: dict[str, Any], word: str) -> None:
    with pytest.raises(SpecError, match=word):
        spec(**fields)


def test_long_prompts_and_invalid_files_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="input"):
        make_plan(spec(prompts=RandomPrompts(input=100, output=30)), TINY, max_model_len=128)
    broken = tmp_path / "prompts.jsonl"
    broken.write_text('{"prompt": "one"}\n{"promt": "two"}\n')
    with pytest.raises(SettingError, match="line 2"):
        make_plan(spec(prompts=FilePrompts(path=str(broken), output=4)), TINY)
    with pytest.raises(TraceError, match=r"nothing\.csv"):
        make_plan(spec(arrivals=TraceReplay(path=str(tmp_path / "nothing.csv"))), TINY)


def test_at_changes_only_the_rate() -> None:
    assert spec().at(9, seed=7) == spec(arrivals=Poisson(rate=9), seed=7)
    closed = spec(arrivals=ClosedLoop(max_concurrency=2))
    assert closed.at(6).arrivals == ClosedLoop(max_concurrency=6)
    with pytest.raises(SpecError, match="rate"):
        spec().at(0)
    with pytest.raises(SettingError, match="ramp"):
        spec(arrivals=Ramp(from_rate=1, to_rate=2, duration_s=3)).at(4)


@pytest.mark.parametrize(
    ("fields", "workers"),
    [
        ({}, 1),
        ({"arrivals": Poisson(rate=350)}, 4),
        ({"arrivals": ClosedLoop(max_concurrency=130)}, 3),
        ({"workers": 7}, 7),
    ],
)
def test_needed_workers(fields: dict[str, Any], workers: int) -> None:
    assert spec(**fields).needed_workers == workers
