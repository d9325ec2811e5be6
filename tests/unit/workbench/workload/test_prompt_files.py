"""Prompt files in the formats of other projects. The samples are written by hand."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from workbench.errors import SettingError
from workbench.workload.arrivals import ClosedLoop, Poisson
from workbench.workload.prompt import Prompt, ToolPrompt
from workbench.workload.prompt_generator import generate_prompts
from workbench.workload.prompts import FilePrompts, FromTrace
from workbench.workload.spec import LoadSpec, make_plan
from workbench.workload.tokenizer import load_tokenizer
from workbench.workload.trace_request import TraceRequest

TINY = load_tokenizer("tiny")

SHAREGPT = [
    {
        "id": "a",
        "conversations": [
            {"from": "human", "value": "What is TTFT?"},
            {"from": "gpt", "value": "The time to the first token."},
            {"from": "human", "value": "And TPOT?"},
            {"from": "gpt", "value": "The time per output token."},
        ],
    },
    {"id": "b", "conversations": [{"from": "gpt", "value": "And so it ends."}]},
    {
        "id": "c",
        "conversations": [
            {"from": "gpt", "value": "the rest of an answer"},
            {"from": "human", "value": "Thanks."},
            {"from": "gpt", "value": "You are welcome."},
        ],
    },
]
LMSYS: dict[str, Any] = {
    "conversation_id": "a",
    "model": "m",
    "turn": 1,
    "language": "English",
    "conversation": [
        {"role": "user", "content": "What is TTFT?"},
        {"role": "assistant", "content": "The time to the first token."},
    ],
}
USER = {"role": "user", "content": "What is TTFT?"}
ANSWER = {"role": "assistant", "content": "The time to the first token."}
TOOL = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "now", "arguments": "{}"}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "prompts.jsonl"


def lines(file: Path, *rows: Any) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def read(file: Path, number: int = 1, **fields: Any) -> tuple[list[Prompt], Counter[str]]:
    left_out = Counter[str]()
    context, trace = fields.pop("context", None), fields.pop("trace", None)
    prompts = generate_prompts(
        FilePrompts(**({"path": str(file)} | fields)),
        TINY,
        np.random.default_rng(0),
        trace=trace,
        max_model_len=context,
        left_out=left_out,
    )
    return list(islice(prompts, number)), left_out


def tokens(text: str) -> int:
    return len(TINY.encode(text))


class TestConversations:
    def test_first_turn_of_sharegpt_with_the_recorded_length(self, file: Path) -> None:
        file.write_text(json.dumps(SHAREGPT))
        prompts, left_out = read(file, 3)
        first = Prompt((USER,), TINY.count_chat([USER]), tokens(ANSWER["content"]))
        thanks = {"role": "user", "content": "Thanks."}
        second = Prompt((thanks,), TINY.count_chat([thanks]), tokens("You are welcome."))
        assert prompts == [first, second, first]
        assert left_out == {"without a message of the user": 1}

    def test_all_turns_have_the_history_of_the_file(self, file: Path) -> None:
        file.write_text(json.dumps(SHAREGPT[:1], indent=2))
        (first, second), _ = read(file, 2, turns="all", think_s=2.0)
        assert (first.content, first.turn, first.think_s) == ((USER,), 0, 0.0)
        assert second.content == (USER, ANSWER, {"role": "user", "content": "And TPOT?"})
        assert (second.conversation, second.turn) == (first.conversation, 1)
        assert second.max_tokens == tokens("The time per output token.")
        assert second.think_s > 0

    def test_conversations_are_sessions_of_a_load(self, file: Path) -> None:
        file.write_text(json.dumps(SHAREGPT))
        prompts = FilePrompts(path=str(file), turns="all")
        arrivals = make_plan(LoadSpec(arrivals=Poisson(rate=5), prompts=prompts, count=4), TINY)
        assert [len(each.turns) for each in arrivals] == [2, 1, 2, 1]
        assert arrivals.report is not None
        assert arrivals.report.left_out == {"without a message of the user": 1}

    def test_lmsys_and_wildchat(self, file: Path) -> None:
        """WildChat's messages have more fields, which are not sent."""
        wild = {
            "conversation_hash": "b",
            "conversation": [
                message | {"toxic": False, "language": "English", "country": None}
                for message in LMSYS["conversation"]
            ],
        }
        prompts, _ = read(lines(file, LMSYS, wild), 2)
        assert prompts[0] == prompts[1]
        assert prompts[0].content == (USER,)

    def test_compressed_file(self, file: Path) -> None:
        file.write_bytes(gzip.compress(json.dumps(LMSYS).encode()))
        assert read(file)[0][0].content == (USER,)

    def test_parquet(self, tmp_path: Path) -> None:
        pq = pytest.importorskip("pyarrow.parquet")
        import pyarrow as pa

        file = tmp_path / "chats.parquet"
        pq.write_table(pa.Table.from_pylist([LMSYS, LMSYS]), file)
        prompts, _ = read(file, 2)
        assert [prompt.content for prompt in prompts] == [(USER,), (USER,)]
        file.write_bytes(b"PAR1")
        with pytest.raises(SettingError, match="cannot be read"):
            read(file)

    @pytest.mark.parametrize(
        ("messages", "reason"),
        [
            ([{"from": "human", "value": "Hi"}], "without an answer"),
            ([{"from": "human", "value": " "}], "with an empty message of the user"),
            ([{"from": "alien", "value": "Hi"}], "with the role 'alien'"),
        ],
    )
    def test_what_cannot_be_sent_is_counted(
        self, file: Path, messages: list[dict[str, str]], reason: str
    ) -> None:
        prompts, left_out = read(lines(file, {"conversations": messages}, LMSYS), 2)
        assert [prompt.content for prompt in prompts] == [(USER,), (USER,)]
        assert left_out == {reason: 1}
        with pytest.raises(SettingError, match=f"no prompt is left .1 {reason}"):
            read(lines(file, {"conversations": messages}))

    def test_limit_stops_reading(self, file: Path) -> None:
        lines(file, LMSYS, LMSYS)
        with file.open("a") as more:
            more.write("broken\n")
        assert len(read(file, 3, limit=2)[0]) == 3
        with pytest.raises(SettingError, match=r"prompts\.jsonl, line 3"):
            read(file)


class TestRequests:
    def test_batch_of_openai(self, file: Path) -> None:
        def request(url: str, **body: Any) -> dict[str, Any]:
            return {"custom_id": "1", "method": "POST", "url": url, "body": {"model": "m"} | body}

        lines(
            file,
            request("/v1/chat/completions", messages=[USER], max_completion_tokens=7, tools=[TOOL]),
            request("/v1/completions", prompt="What?", max_tokens=8),
            request("/v1/completions", prompt=[5, 6, 7], max_tokens=9),
            request("/v1/embeddings", input="What?"),
        )
        prompts, left_out = read(file, 3)
        assert prompts == [
            ToolPrompt((USER,), TINY.count_chat([USER], [TOOL]), 7, tools=(TOOL,)),
            Prompt("What?", tokens("What?"), 8),
            Prompt((5, 6, 7), 3, 9),
        ]
        assert left_out == {"for /v1/embeddings": 1}

    def test_content_parts_become_text(self, file: Path) -> None:
        parts = [
            {"type": "text", "text": "What is"},
            {"type": "image_url", "image_url": {"url": "data:"}},
            {"type": "text", "text": "this?"},
        ]
        only_image = {"messages": [{"role": "user", "content": parts[1:2]}]}
        lines(file, {"messages": [{"role": "user", "content": parts}]}, only_image)
        prompts, left_out = read(file, output=4)
        assert prompts[0].content == ({"role": "user", "content": "What is\nthis?"},)
        assert left_out == {
            "parts of the type 'image_url'": 2,
            "with a message without text": 1,
        }

    def test_tools_and_their_messages_are_sent(self, file: Path) -> None:
        called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
        result = {"role": "tool", "tool_call_id": "1", "content": "noon"}
        prompts, _ = read(
            lines(file, {"messages": [USER, called, result], "tools": [TOOL]}), output=4
        )
        prompt = prompts[0]
        assert isinstance(prompt, ToolPrompt)
        assert prompt.tools == (TOOL,)
        assert prompt.content == (USER, called | {"content": ""}, result)
        bare = TINY.count_chat([USER, called | {"content": ""}, result])
        assert prompt.prompt_tokens == TINY.count_chat(prompt.content, [TOOL]) > bare

    def test_name_of_guidellm_for_the_length(self, file: Path) -> None:
        prompts, _ = read(lines(file, {"prompt": "What?", "output_tokens_count": 6}))
        assert prompts[0].max_tokens == 6

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ({"body": {"model": "m"}, "url": "/v1/completions"}, "line 1: the field 'body'"),
            ({"body": {"messages": [USER], "max_tokens": 0}}, "line 1, field 'body'"),
            (
                {"conversation": [{"role": "user", "content": 3}]},
                "line 1: a message .* has no text",
            ),
            ({"conversation": 3}, "line 1, field 'conversation'"),
        ],
    )
    def test_invalid_line_is_named(self, file: Path, line: Any, words: str) -> None:
        with pytest.raises(SettingError, match=rf"prompts\.jsonl, {words}"):
            read(lines(file, line), output=4)


class TestContext:
    LONG: ClassVar = {"prompt": "What is the time to the first token? " * 9, "output_tokens": 4}
    SHORT: ClassVar = {"prompt": "What?", "output_tokens": 90}

    def test_prompts_that_do_not_fit_are_left_out(self, file: Path) -> None:
        lines(file, self.LONG, {"prompt": "Why?", "output_tokens": 2}, self.SHORT)
        prompts, left_out = read(file, 2, context=20)
        assert [prompt.content for prompt in prompts] == ["Why?", "Why?"]
        assert left_out == {"longer than the context": 2}

    def test_answers_are_clipped(self, file: Path) -> None:
        lines(file, self.LONG, self.SHORT)
        prompts, left_out = read(file, 1, context=20, unfit="clip")
        assert (prompts[0].content, prompts[0].max_tokens) == ("What?", 20 - tokens("What?"))
        assert left_out == {"longer than the context": 1, "answers shortened to the context": 1}

    def test_none_left_is_rejected(self, file: Path) -> None:
        with pytest.raises(SettingError, match=r"no prompt is left \(1 longer than the context\)"):
            read(lines(file, self.LONG), context=20)

    def test_answers_of_a_trace_are_clipped_to_keep_the_order(self, file: Path) -> None:
        trace = [TraceRequest(float(i), None, output) for i, output in enumerate((5, 90, 6))]
        lines(file, {"prompt": "What?"}, {"prompt": "Why?"})
        prompts, _ = read(file, 9, context=20, output=FromTrace(), trace=trace)
        assert [prompt.max_tokens for prompt in prompts] == [5, 20 - tokens("Why?"), 6]
        with pytest.raises(SettingError, match="output_tokens = 90"):
            read(file, context=20, output=FromTrace(), trace=trace, unfit="reject")

    def test_later_turns_that_do_not_fit_are_left_out(self, file: Path) -> None:
        file.write_text(json.dumps(SHAREGPT[:1]))
        one = TINY.count_chat([USER]) + tokens(ANSWER["content"])
        prompts, left_out = read(file, 2, turns="all", context=one)
        assert [prompt.turn for prompt in prompts] == [0, 0]
        assert left_out == {"longer than the context": 1}


class TestHub:
    """The hub itself is replaced: it may not be reachable."""

    def test_file_of_a_data_set(self, file: Path, monkeypatch: Any) -> None:
        import huggingface_hub

        lines(file, LMSYS)
        asked: list[tuple[str, str]] = []

        def download(repository: str, name: str, *, repo_type: str) -> str:
            assert repo_type == "dataset"
            asked.append((repository, name))
            return str(file)

        def names(repository: str, *, repo_type: str) -> list[str]:
            return ["README.md", "data/train-00000.parquet", "chats.jsonl"]

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        monkeypatch.setattr(huggingface_hub, "list_repo_files", names)
        for path in ("hf://datasets/owner/name/data/a.jsonl", "hf://datasets/owner/name"):
            assert read(file, path=path)[0][0].content == (USER,)
        assert asked == [("owner/name", "data/a.jsonl"), ("owner/name", "chats.jsonl")]

    def test_hub_that_cannot_be_reached(self, monkeypatch: Any) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        path = "hf://datasets/owner/name/a.jsonl"
        with pytest.raises(SettingError, match=f"FilePrompts.path = '{path}' cannot be downloaded"):
            read(Path("unused"), path=path)


def test_closed_loop_takes_files_too(file: Path) -> None:
    load = LoadSpec(
        arrivals=ClosedLoop(max_concurrency=2),
        prompts=FilePrompts(path=str(lines(file, LMSYS))),
        count=3,
    )
    assert len(make_plan(load, TINY)) == 3
