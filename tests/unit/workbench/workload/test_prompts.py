"""Prompts against the tokenizers library, the tokenizer's own files and scipy's distributions.

For random values the bounds are so far in the tails that a correct sampler meets them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from scipy import stats

from serving.errors import SpecError
from serving.models.embedded import tiny_model_path
from workbench.errors import SettingError
from workbench.workload.prompt import Prompt
from workbench.workload.prompt_generator import generate_prompts
from workbench.workload.prompts import (
    Conversations,
    FilePrompts,
    Fixed,
    FromTrace,
    LogNormal,
    PromptSet,
    RandomPrompts,
    Uniform,
)
from workbench.workload.tokenizer import load_tokenizer
from workbench.workload.trace_request import TraceRequest

TAIL = 1e-10
TINY = load_tokenizer("tiny")
FILES = json.loads((tiny_model_path() / "tokenizer.json").read_text(encoding="utf-8"))

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " What is TTFT? "},
]
RENDERED = "<|begin|><|system|>Be brief.<|end|>\n<|user|>What is TTFT?<|end|>\n<|assistant|>"

seeds = st.integers(0, 2**32 - 1)
uniforms = st.tuples(st.integers(1, 60), st.integers(0, 60)).map(
    lambda pair: Uniform(low=pair[0], high=sum(pair))
)
lognormals = st.builds(
    LogNormal,
    median=st.floats(10, 40),
    # Between 0 and this, a double near 1/2 has too few neighbours to compare distributions.
    sigma=st.just(0.0) | st.floats(1e-9, 3),
    low=st.integers(1, 10),
    high=st.integers(40, 90),
)
lengths = st.builds(Fixed, tokens=st.integers(1, 60)) | uniforms | lognormals
specs = st.builds(
    RandomPrompts, input=lengths, output=lengths, prefixes=st.integers(1, 3)
) | st.builds(
    Conversations,
    turns=st.integers(1, 3),
    input=lengths,
    output=lengths,
    system_tokens=st.integers(0, 20),
    think_s=st.floats(0, 10),
)


def take(spec: PromptSet, number: int, seed: int = 0, **given: Any) -> list[Prompt]:
    return list(islice(generate_prompts(spec, TINY, np.random.default_rng(seed), **given), number))


def raw(folder: Path) -> Any:
    tokenizers = pytest.importorskip("tokenizers")
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def written(folder: Path, *lines: Any) -> str:
    file = folder / "prompts.jsonl"
    texts = (line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    file.write_bytes(b"".join(text + b"\n" for text in texts))
    return str(file)


class TestTokenizer:
    def test_regular_tokens_are_the_vocabulary_without_added_tokens(self) -> None:
        added = {token["id"] for token in FILES["added_tokens"]}
        assert len(added) == 6
        assert [*TINY.regular_token_ids] == sorted({*FILES["model"]["vocab"].values()} - added)

    @pytest.mark.parametrize("text", ["What is TTFT?", " Größe 中文\n\n", "<|user|>Hi<|end|>"])
    def test_text_has_the_ids_of_the_tokenizers_library(self, text: str) -> None:
        assert TINY.encode(text) == raw(tiny_model_path()).encode(text).ids

    def test_chat_is_counted_as_rendered(self) -> None:
        ids = raw(tiny_model_path()).encode(RENDERED, add_special_tokens=False).ids
        assert TINY.count_chat(MESSAGES) == len(ids)

    def test_bos_is_added_to_text_but_not_twice_to_chat(self, tmp_path: Path) -> None:
        folder = tmp_path / "with_bos"
        shutil.copytree(tiny_model_path(), folder, ignore=shutil.ignore_patterns("*.safetensors"))
        begin, sequence = {"id": "<|begin|>", "type_id": 0}, {"id": "A", "type_id": 0}
        processor = FILES["post_processor"] | {
            "single": [{"SpecialToken": begin}, {"Sequence": sequence}],
            "special_tokens": {
                "<|begin|>": {"id": "<|begin|>", "ids": [1], "tokens": ["<|begin|>"]}
            },
        }
        changed = json.dumps(FILES | {"post_processor": processor})
        (folder / "tokenizer.json").write_text(changed, encoding="utf-8")
        mine = load_tokenizer(str(folder))
        assert mine.encode("What?") == raw(folder).encode("What?").ids == [1, *TINY.encode("What?")]
        assert mine.count_chat(MESSAGES) == TINY.count_chat(MESSAGES)

    def test_unloadable_tokenizer_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(SettingError, match="'/no/such/folder'"):
            load_tokenizer("/no/such/folder")
        (tmp_path / "tokenizer.json").write_text("{}")
        with pytest.raises(SettingError, match="tokenizer = "):
            load_tokenizer(str(tmp_path))

    def test_missing_or_failing_chat_template_is_named(self, tmp_path: Path) -> None:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tiny_model_path() / name, tmp_path)
        with pytest.raises(SettingError, match="chat template"):
            load_tokenizer(str(tmp_path)).count_chat(MESSAGES)
        (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('never') }}")
        with pytest.raises(SettingError, match="never"):
            load_tokenizer(str(tmp_path)).count_chat(MESSAGES)

    def test_import_needs_neither_transformers_nor_numpy(self) -> None:
        code = (
            "import sys, workbench.workload.prompt_generator, workbench.workload.tokenizer; "
            "print([m for m in ('transformers', 'numpy', 'jinja2') if m in sys.modules])"
        )
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert out.stdout.strip() == "[]", out.stderr


class TestEveryPromptSet:
    @settings(max_examples=60)
    @given(specs, seeds, st.integers(1, 9))
    def test_same_seed_gives_the_same_prompts(self, spec: PromptSet, seed: int, short: int) -> None:
        longer = take(spec, 10, seed)
        assert take(spec, short, seed) == longer[:short]
        assert len(longer) == 10

    @settings(max_examples=60)
    @given(specs, seeds)
    def test_token_counts_match_the_ids_and_the_bounds(
        self, spec: RandomPrompts | Conversations, seed: int
    ) -> None:
        regular = {*TINY.regular_token_ids}
        for prompt in take(spec, 10, seed):
            assert len(prompt.content) == prompt.prompt_tokens
            assert {*prompt.content} <= regular
            assert spec.output.low <= prompt.max_tokens <= spec.output.high
            if isinstance(spec, RandomPrompts):
                assert spec.input.low <= prompt.prompt_tokens <= spec.input.high

    @settings(max_examples=60)
    @given(specs)
    def test_round_trips_through_json(self, spec: PromptSet) -> None:
        plain = json.loads(json.dumps(spec.model_dump(mode="json")))
        assert TypeAdapter(PromptSet).validate_python(plain) == spec

    def test_different_seeds_differ(self) -> None:
        spec = RandomPrompts(input=8, output=1)
        assert take(spec, 1, seed=1) != take(spec, 1, seed=2)

    @settings(max_examples=60)
    @given(specs)
    def test_context_below_the_longest_prompt_is_rejected(
        self, spec: RandomPrompts | Conversations
    ) -> None:
        longest = spec.input.high + spec.output.high
        if isinstance(spec, Conversations):
            longest = spec.system_tokens + spec.turns * longest
        take(spec, 1, max_model_len=longest)
        with pytest.raises(SettingError, match=r"input and output .*max_model_len|input = "):
            generate_prompts(spec, TINY, np.random.default_rng(0), max_model_len=longest - 1)


class TestLengths:
    @settings(max_examples=20)
    @given(lognormals, seeds)
    def test_log_normal_is_distributed_as_in_scipy(self, length: LogNormal, seed: int) -> None:
        rng = np.random.default_rng(seed)
        drawn = np.array([length.draw(rng) for _ in range(2000)])
        for at in (20, int(length.median), int(length.median) + 1, 35):
            if not length.low <= at < length.high:
                continue
            if length.sigma:
                share = stats.lognorm(length.sigma, scale=length.median).cdf(at + 0.5)
            else:
                share = float(round(length.median) <= at)
            law = stats.binom(2000, share)
            assert law.ppf(TAIL) <= (drawn <= at).sum() <= law.isf(TAIL)

    @settings(max_examples=20)
    @given(st.floats(0.1, 2), st.integers(100, 1000), seeds)
    def test_log_normal_has_its_median(self, sigma: float, median: int, seed: int) -> None:
        length, rng = LogNormal(median=median, sigma=sigma, high=10**6), np.random.default_rng(seed)
        drawn = np.array([length.draw(rng) for _ in range(2000)])
        low, high = stats.binom(2000, 0.5).ppf(TAIL), stats.binom(2000, 0.5).isf(TAIL)
        assert (drawn > median).sum() <= high
        assert (drawn < median).sum() <= high
        assert (drawn <= median).sum() >= low

    @settings(max_examples=20)
    @given(st.integers(1, 50), st.integers(0, 5), seeds)
    def test_uniform_lengths_are_equally_frequent(self, low: int, more: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        drawn = [Uniform(low=low, high=low + more).draw(rng) for _ in range(600)]
        times = np.bincount(np.array(drawn) - low)
        assert times.size == more + 1
        assert stats.chisquare(times).pvalue > TAIL or more == 0

    def test_int_is_a_fixed_length(self) -> None:
        spec = RandomPrompts(input=7, output=3)
        assert (spec.input, spec.output) == (Fixed(tokens=7), Fixed(tokens=3))

    @pytest.mark.parametrize(
        ("length", "words"),
        [
            (0, r"RandomPrompts\.input = 0"),
            (True, r"RandomPrompts\.input must .*got True"),
            ("64", r"RandomPrompts\.input must .*got '64'"),
            ({"kind": "fixd", "tokens": 3}, "input: .*'fixd'"),
            ({"low": 3, "high": 4}, "input: .*kind"),
            ({"kind": "uniform", "low": 0, "high": 4}, r"input: Uniform\.low must .*got 0"),
            ({"kind": "uniform", "low": 5, "high": 4}, r"Uniform\.high = 4"),
            ({"kind": "uniform", "low": 5, "hihg": 9}, "hihg.*'high'"),
            ({"kind": "lognormal", "median": 9, "sigma": 1, "high": 8}, r"LogNormal\.median = 9"),
            ({"kind": "lognormal", "median": 9, "sigma": -1, "high": 99}, "sigma must .*got -1"),
        ],
    )
    def test_invalid_length_is_named(self, length: Any, words: str) -> None:
        with pytest.raises(SpecError, match=words):
            RandomPrompts(input=length, output=1)


class TestRandom:
    def test_prefixes_are_part_of_the_input_and_all_used(self) -> None:
        spec = RandomPrompts(
            input=Uniform(low=12, high=20), output=1, shared_prefix_tokens=12, prefixes=4
        )
        prompts = take(spec, 400)
        assert {len(prompt.content) for prompt in prompts} == {*range(12, 21)}
        assert all(len(prompt.content) == prompt.prompt_tokens for prompt in prompts)
        heads = [prompt.content[:12] for prompt in prompts]
        assert stats.chisquare([heads.count(head) for head in {*heads}]).pvalue > TAIL
        assert len({*heads}) == 4
        assert len({prompt.content for prompt in prompts if prompt.prompt_tokens > 16}) > 100

    def test_prefix_longer_than_a_prompt_is_rejected(self) -> None:
        with pytest.raises(SpecError, match="shared_prefix_tokens"):
            RandomPrompts(input=Uniform(low=5, high=50), output=1, shared_prefix_tokens=6)


class TestFromTrace:
    TRACE = (TraceRequest(0.0, 9, 2), TraceRequest(1.0, 4, 7), TraceRequest(2.0, 6, None))

    def test_lengths_are_those_of_the_trace(self) -> None:
        spec = RandomPrompts(input=FromTrace(), output=Uniform(low=1, high=3))
        prompts = take(spec, 99, trace=self.TRACE, max_model_len=12)
        assert [prompt.prompt_tokens for prompt in prompts] == [9, 4, 6]
        both = take(RandomPrompts(input=FromTrace(), output=FromTrace()), 99, trace=self.TRACE[:2])
        assert [(p.prompt_tokens, p.max_tokens) for p in both] == [(9, 2), (4, 7)]
        assert len(take(spec, 99, trace=self.TRACE[:1])) == 1

    @pytest.mark.parametrize(
        ("fields", "given", "words"),
        [
            ({"output": FromTrace()}, {"trace": TRACE}, "output.*request 3.*output_tokens"),
            ({"output": 1}, {}, r"RandomPrompts\.input .*no trace"),
            ({"output": 3}, {"trace": TRACE, "max_model_len": 11}, "request 1 .*input = 9"),
            (
                {"output": 1, "shared_prefix_tokens": 5},
                {"trace": TRACE},
                "request 2 .*shared_prefix",
            ),
        ],
    )
    def test_trace_without_the_needed_lengths_is_rejected(
        self, fields: dict[str, Any], given: dict[str, Any], words: str
    ) -> None:
        spec = RandomPrompts(input=FromTrace(), **fields)
        with pytest.raises(SettingError, match=words):
            generate_prompts(spec, TINY, np.random.default_rng(0), **given)

    def test_conversation_takes_no_length_from_a_trace(self) -> None:
        with pytest.raises(SpecError, match=r"Conversations\.input"):
            Conversations(turns=2, input=FromTrace(), output=1)


class TestConversations:
    SPEC = Conversations(
        turns=3, input=Uniform(low=2, high=5), output=4, system_tokens=6, think_s=2.0
    )

    def test_turn_repeats_the_history(self) -> None:
        prompts = take(self.SPEC, 30)
        assert [(p.conversation, p.turn) for p in prompts] == [(i // 3, i % 3) for i in range(30)]
        assert len({prompt.content[:6] for prompt in prompts}) == 1
        for before, after in pairwise(prompts):
            if after.turn:
                assert after.content[: before.prompt_tokens] == before.content
                new = after.prompt_tokens - before.prompt_tokens - before.max_tokens
            else:
                new = after.prompt_tokens - 6
            assert 2 <= new <= 5

    def test_think_time_is_exponential_and_only_between_turns(self) -> None:
        prompts = take(self.SPEC, 3000)
        assert {prompt.think_s for prompt in prompts if prompt.turn == 0} == {0.0}
        waits = [prompt.think_s for prompt in prompts if prompt.turn]
        assert stats.kstest(waits, stats.expon(scale=2.0).cdf).pvalue > TAIL

    def test_think_time_does_not_change_the_prompts(self) -> None:
        hasty = self.SPEC.model_copy(update={"think_s": 0.0})
        assert [p.content for p in take(hasty, 9)] == [p.content for p in take(self.SPEC, 9)]


class TestFile:
    def test_lines_are_counted_as_the_server_does_and_repeat(self, tmp_path: Path) -> None:
        text = "Größe, <|user|> and two  spaces"
        lines = ({"prompt": text, "output_tokens": 9, "id": "a"}, b"", {"messages": MESSAGES})
        prompts = take(FilePrompts(path=written(tmp_path, *lines), output=5), 5)
        truth = raw(tiny_model_path())
        assert [prompt.content for prompt in prompts[:2]] == [text, tuple(MESSAGES)]
        assert [prompt.prompt_tokens for prompt in prompts[:2]] == [
            len(truth.encode(text).ids),
            len(truth.encode(RENDERED, add_special_tokens=False).ids),
        ]
        assert [prompt.max_tokens for prompt in prompts] == [9, 5, 9, 5, 9]
        assert prompts[2:4] == prompts[:2]

    def test_output_lengths_are_drawn_or_from_a_trace(self, tmp_path: Path) -> None:
        path = written(tmp_path, {"prompt": "one"}, {"prompt": "two"})
        drawn = take(FilePrompts(path=path, output=Uniform(low=1, high=99)), 20, seed=1)
        assert drawn == take(FilePrompts(path=path, output=Uniform(low=1, high=99)), 20, seed=1)
        assert len({prompt.max_tokens for prompt in drawn}) > 2
        trace = [TraceRequest(float(i), None, i + 3) for i in range(3)]
        traced = take(FilePrompts(path=path, output=FromTrace()), 99, trace=trace)
        assert [(p.content, p.max_tokens) for p in traced] == [("one", 3), ("two", 4), ("one", 5)]

    def test_context_below_the_longest_line_is_rejected(self, tmp_path: Path) -> None:
        path = written(tmp_path, {"prompt": "one"}, {"prompt": "What is it?", "output_tokens": 30})
        longest = len(raw(tiny_model_path()).encode("What is it?").ids) + 30
        spec = FilePrompts(path=path, output=1, unfit="reject")
        take(spec, 3, max_model_len=longest)
        with pytest.raises(SettingError, match=r"prompts\.jsonl, line 2: .*output_tokens = 30"):
            generate_prompts(spec, TINY, np.random.default_rng(0), max_model_len=longest - 1)

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            (b'{"prompt": "cut o', "line 2"),
            (b'{"prompt": "\xff\xfe"}', "line 2"),
            (b'["a list"]', "line 2"),
            ({"promt": "two"}, "line 2.*'prompt'.*'messages'"),
            ({"prompt": "two", "messages": MESSAGES}, "line 2.*'prompt'.*'messages'"),
            ({"prompt": ""}, "line 2.*'prompt'"),
            ({"prompt": 2}, "line 2, field 'prompt'"),
            ({"prompt": "two", "output_tokens": 0}, "line 2, field 'output_tokens'"),
            ({"prompt": "two", "output_tokens": "9"}, "line 2, field 'output_tokens'"),
            ({"messages": []}, "line 2.*'messages'"),
            ({"messages": [{"role": "user"}]}, "line 2.*'messages'.*'content'"),
            ({"messages": [{"role": "user", "content": None}]}, "line 2, field 'messages'"),
        ],
    )
    def test_invalid_line_is_named_before_any_prompt(
        self, tmp_path: Path, line: Any, words: str
    ) -> None:
        path = written(tmp_path, {"prompt": "one"}, line)
        with pytest.raises(SettingError, match=rf"prompts\.jsonl, {words}"):
            generate_prompts(FilePrompts(path=path, output=4), TINY, np.random.default_rng(0))

    def test_line_without_output_tokens_needs_a_default(self, tmp_path: Path) -> None:
        path = written(tmp_path, {"prompt": "one", "output_tokens": 1}, {"prompt": "two"})
        with pytest.raises(SettingError, match=r"line 2.*'output_tokens'"):
            generate_prompts(FilePrompts(path=path), TINY, np.random.default_rng(0))

    def test_empty_or_missing_file_is_named(self, tmp_path: Path) -> None:
        for path in (written(tmp_path, b"", b"  "), str(tmp_path / "none.jsonl"), str(tmp_path)):
            with pytest.raises(SettingError, match=path):
                generate_prompts(FilePrompts(path=path, output=4), TINY, np.random.default_rng(0))
