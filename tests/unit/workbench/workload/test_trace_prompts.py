"""Prompts of a trace: which requests fit, and which prefixes they share.

The truth of a hit rate is a count over the tokens of the prompts themselves.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import SettingError, TraceError
from workbench.workload.arrivals import TraceReplay
from workbench.workload.prefix_cache import PrefixHits, prefix_hits
from workbench.workload.prompt import Prompt, ToolPrompt
from workbench.workload.prompt_generator import generate_prompts
from workbench.workload.prompts import FromTrace, RandomPrompts, TracePrompts, Uniform
from workbench.workload.spec import LoadSpec, Plan, make_plan
from workbench.workload.tokenizer import load_tokenizer
from workbench.workload.trace_request import TraceRequest

TINY = load_tokenizer("tiny")
LENGTHS = RandomPrompts(input=FromTrace(), output=FromTrace())


def row(at_ms: int, prompt: int, output: int, *ids: int, **more: Any) -> dict[str, Any]:
    return {
        "timestamp": at_ms,
        "input_length": prompt,
        "output_length": output,
        "hash_ids": list(ids),
    } | more


def plan_of(folder: Path, rows: list[dict[str, Any]], **fields: Any) -> Plan:
    """Return the plan of a trace; `context` is the model's, further fields are the replay's."""
    file = folder / "trace.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in rows))
    prompts, context = fields.pop("prompts", TracePrompts()), fields.pop("context", None)
    replay = TraceReplay(path=str(file), **({"time_unit": "ms"} | fields))
    return make_plan(LoadSpec(arrivals=replay, prompts=prompts), TINY, max_model_len=context)


def lengths(plan: Plan) -> list[tuple[int, int]]:
    return [(turn.prompt_tokens, turn.max_tokens) for each in plan for turn in each.turns]


class TestUnfit:
    ROWS: ClassVar = [
        row(0, 9, 2),
        row(1000, 5, 0),
        row(2000, 90, 30),
        row(3000, 0, 4),
        row(4000, 6, 90),
    ]

    def test_requests_that_do_not_fit_are_left_out_and_counted(self, tmp_path: Path) -> None:
        plan = plan_of(tmp_path, self.ROWS, prompts=LENGTHS, context=64)
        assert [(each.at_s, lengths([each])) for each in plan] == [(0, [(9, 2)])]  # type: ignore[arg-type]
        assert plan.report is not None
        skipped = {
            "without output tokens": 1,
            "longer than the context": 2,
            "without prompt tokens": 1,
        }
        assert plan.report.skipped == skipped
        assert plan.report.trace["requests"] == 1
        assert any("left out: 1 without output tokens" in note for note in plan.report.notes)

    def test_lengths_are_clipped(self, tmp_path: Path) -> None:
        """The shorter of the two keeps its length up to half of the context."""
        plan = plan_of(tmp_path, self.ROWS, prompts=LENGTHS, context=64, unfit="clip")
        assert lengths(plan) == [(9, 2), (5, 1), (34, 30), (1, 4), (6, 58)]
        assert [each.at_s for each in plan] == [0, 1, 2, 3, 4]
        assert plan.report is not None
        assert sum(plan.report.clipped.values()) == 4
        both = plan_of(tmp_path, [row(0, 90, 90)], prompts=LENGTHS, context=64, unfit="clip")
        assert lengths(both) == [(32, 32)]

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            (
                ROWS[:2],
                r"request 2 of the trace .*without output tokens .*prompt = 5 and output = 0",
            ),
            (ROWS[:1] + ROWS[2:], r"request 2 .*longer than the context .*max_model_len = 64"),
        ],
    )
    def test_they_can_be_rejected(
        self, tmp_path: Path, rows: list[dict[str, Any]], message: str
    ) -> None:
        with pytest.raises(SettingError, match=message):
            plan_of(tmp_path, rows, prompts=LENGTHS, context=64, unfit="reject")

    def test_a_setting_that_leaves_no_request_is_rejected(self, tmp_path: Path) -> None:
        with pytest.raises(
            SettingError, match=r"none of 2 requests fits .1 without output tokens, 1"
        ):
            plan_of(tmp_path, self.ROWS[1:3], prompts=LENGTHS, context=64)

    def test_arrivals_without_lengths_count_where_no_length_is_needed(self, tmp_path: Path) -> None:
        plan = plan_of(tmp_path, self.ROWS, prompts=RandomPrompts(input=8, output=2), context=64)
        assert [each.at_s for each in plan] == [0, 1, 2, 3, 4]

    def test_requests_shorter_than_a_shared_prefix(self, tmp_path: Path) -> None:
        prompts = LENGTHS.model_copy(update={"shared_prefix_tokens": 7})
        rows = [row(0, 9, 2), row(1000, 5, 3)]
        assert lengths(plan_of(tmp_path, rows, prompts=prompts)) == [(9, 2)]
        assert lengths(plan_of(tmp_path, rows, prompts=prompts, unfit="clip")) == [(9, 2), (7, 3)]

    def test_drawn_answers_count_with_their_longest(self, tmp_path: Path) -> None:
        prompts = RandomPrompts(input=FromTrace(), output=Uniform(low=1, high=40))
        plan = plan_of(tmp_path, [row(0, 24, 1), row(0, 25, 1)], prompts=prompts, context=64)
        assert [prompt for prompt, _ in lengths(plan)] == [24]

    def test_hash_ids_that_are_not_used_are_reported(self, tmp_path: Path) -> None:
        plan = plan_of(tmp_path, self.ROWS[:1], prompts=LENGTHS)
        assert plan.report is not None
        assert any("hash_ids of the trace are not used" in note for note in plan.report.notes)
        recorded = plan_of(tmp_path, self.ROWS[:1])
        assert recorded.report is not None
        assert not recorded.report.notes


class TestBlocks:
    ROWS: ClassVar = [row(0, 40, 1, 7, 8, 9), row(1, 48, 1, 7, 8, 3), row(2, 33, 1, 8, 7, 9)]

    def contents(self, folder: Path, **fields: Any) -> list[tuple[int, ...]]:
        plan = plan_of(folder, self.ROWS, **({"block_size": 16} | fields))
        return [turn.content for each in plan for turn in each.turns]  # type: ignore[misc]

    def test_same_id_is_the_same_block(self, tmp_path: Path) -> None:
        first, second, third = self.contents(tmp_path)
        assert [len(first), len(second), len(third)] == [40, 48, 33]
        assert first[:32] == second[:32]
        assert first[32:] != second[32:40]
        assert (third[:16], third[16:32]) == (first[16:32], first[:16])
        assert third[32] == first[32]
        assert {*first, *second, *third} <= {*TINY.regular_token_ids}
        assert len({first[:16], first[16:32], second[32:]}) == 3

    def test_seed_changes_the_blocks(self, tmp_path: Path) -> None:
        replay = TraceReplay(path=str(tmp_path / "trace.jsonl"), time_unit="ms", block_size=16)
        self.contents(tmp_path)
        plans = [
            make_plan(LoadSpec(arrivals=replay, prompts=TracePrompts(), seed=seed), TINY)
            for seed in (1, 1, 2)
        ]
        assert plans[0] == plans[1] != plans[2]

    def test_unknown_block_size_is_rejected(self, tmp_path: Path) -> None:
        with pytest.raises(SettingError, match=r"give TraceReplay.block_size"):
            plan_of(tmp_path, [row(0, 40, 1, 7, 8, 9, 3)])

    def test_tokens_without_an_id_are_shared_by_none(self, tmp_path: Path) -> None:
        plan = plan_of(tmp_path, [row(0, 40, 1, 7), row(1, 40, 1, 7)], block_size=16)
        first, second = (each.turns[0].content for each in plan)
        assert first[:16] == second[:16]
        assert first[16:] != second[16:]

    def test_prompts_of_a_trace_need_a_trace(self) -> None:
        with pytest.raises(SettingError, match="kind 'trace' need a trace"):
            generate_prompts(TracePrompts(), TINY, np.random.default_rng(0))


class TestOwnPrompts:
    def test_texts_messages_and_sessions(self, tmp_path: Path) -> None:
        chat = [{"role": "user", "content": "What is TTFT?"}]
        tools = [{"type": "function", "function": {"name": "now", "parameters": {}}}]
        rows = [
            {"timestamp": 0, "text_input": "Größe", "output_length": 4},
            {"timestamp": 10, "messages": chat, "tools": tools, "output_length": 5},
            {"timestamp": 20, "session_id": "a", "input_length": 6, "output_length": 2},
            {"session_id": "a", "delay": 500, "input_length": 3, "output_length": 7},
        ]
        plan = plan_of(tmp_path, rows, time_unit="auto")
        text, called, session = (each.turns for each in plan)
        assert text == (Prompt("Größe", len(TINY.encode("Größe")), 4),)
        assert called == (
            ToolPrompt(tuple(chat), TINY.count_chat(chat, tools), 5, tools=tuple(tools)),
        )
        first, second = session
        assert (second.conversation, second.turn, second.think_s) == (first.conversation, 1, 0.5)
        assert (first.prompt_tokens, second.prompt_tokens, second.max_tokens) == (6, 6 + 2 + 3, 7)
        assert second.content[:6] == first.content
        assert [each.at_s for each in plan] == [0, 0.01, 0.02]

    def test_turns_beyond_the_context_are_left_out(self, tmp_path: Path) -> None:
        turn = {"session_id": "a", "delay": 1, "input_length": 6, "output_length": 4}
        rows = [{"timestamp": 0, "session_id": "a", "input_length": 6, "output_length": 4}]
        plan = plan_of(tmp_path, [*rows, turn, turn, turn], time_unit="auto", context=30)
        assert lengths(plan) == [(6, 4), (16, 4), (26, 4)]
        assert plan.report is not None
        assert plan.report.skipped == {"longer than the context": 1}

    def test_long_texts_are_cut_to_tokens(self, tmp_path: Path) -> None:
        text = "What is the time to the first token? " * 9
        rows = [{"timestamp": 0, "text_input": text, "output_length": 4}]
        plan = plan_of(tmp_path, rows, time_unit="auto", context=20, unfit="clip")
        assert plan[0].turns[0].content == tuple(TINY.encode(text)[:16])
        with pytest.raises(SettingError, match="none of 1 requests fits"):
            plan_of(tmp_path, rows, time_unit="auto", context=20)


def counted_hits(contents: list[tuple[int, ...]], block: int) -> int:
    """Count the tokens of complete blocks at the start that an earlier prompt has; never all."""
    seen: set[tuple[int, ...]] = set()
    hits = 0
    for tokens in contents:
        ends = range(block, len(tokens) + 1, block)
        found = 0
        while found < len(ends) and tokens[: ends[found]] in seen:
            found += 1
        hits += min(found, (len(tokens) - 1) // block) * block
        seen |= {tokens[:end] for end in ends}
    return hits


traces = st.lists(
    st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=5), st.integers(0, 15)),
    min_size=1,
    max_size=12,
)


class TestPrefixHits:
    @given(traces, st.sampled_from([4, 8, 16, 32, 12]))
    def test_hits_are_those_of_the_tokens(
        self, rows: list[tuple[list[int], int]], engine_block: int
    ) -> None:
        requests = [
            TraceRequest(0.0, 16 * len(ids) - missing, 4, hash_ids=tuple(ids))
            for ids, missing in rows
        ]
        prompts = generate_prompts(
            TracePrompts(), TINY, np.random.default_rng(0), trace=requests, block_size=16
        )
        contents: list[Any] = [prompt.content for prompt in prompts]
        computed = prefix_hits(requests, trace_block=16, engine_block=engine_block)
        assert computed.queries == sum(map(len, contents))
        assert computed.hits == counted_hits(contents, engine_block)

    def test_least_recently_used_blocks_are_evicted(self) -> None:
        """Each request fills two blocks with its prompt and one with its answer."""
        a, b = (TraceRequest(0.0, 32, 16, hash_ids=ids) for ids in ((1, 2), (3, 4)))
        repeated = [a, b, a, b]
        sizes = {"trace_block": 16, "engine_block": 16}
        # The last token of a prompt is always computed, and so its block.
        assert prefix_hits(repeated, **sizes) == PrefixHits(128, 32)
        assert prefix_hits(repeated, **sizes, capacity_blocks=6) == PrefixHits(128, 32)
        assert prefix_hits(repeated, **sizes, capacity_blocks=3) == PrefixHits(128, 0)

    def test_without_requests(self) -> None:
        assert prefix_hits([], trace_block=16, engine_block=16).rate == 0.0


def test_trace_without_a_known_unit_is_rejected_before_any_prompt(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="the unit of time is unknown"):
        plan_of(tmp_path, [row(0, 9, 1), row(9, 9, 1)], time_unit="auto")
