"""The HTTP API of a baseline, over an engine with scripted events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import httpx
import pytest

from serving.baselines.api import Api
from serving.baselines.requests import Event
from serving.models.embedded import tiny_model_path
from serving.spec.baseline import BaselineSpec
from serving.spec.model import ModelSpec

MODEL = "tiny-llama-glossary"
TEXT = " batching is a technique"
transformers = pytest.importorskip("transformers")
TOKENIZER = transformers.AutoTokenizer.from_pretrained(tiny_model_path())
TOKENS = TOKENIZER.encode(TEXT, add_special_tokens=False)


class ScriptedEngine:
    """Yields the same events for every request, and records what it was asked."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.events = events
        self.calls: list[tuple[list[int], int, bool]] = []
        self.stats = {"requests": 7}

    async def generate(
        self, prompt: list[int], max_tokens: int, ignore_eos: bool
    ) -> AsyncGenerator[Event, None]:
        self.calls.append((prompt, max_tokens, ignore_eos))
        for event in self.events:
            yield event


WHOLE = [Event(0, TOKENS[:1]), Event(0, TOKENS[1:], "stop")]


def send(
    method: str, path: str, events: Sequence[Event] = WHOLE, **options: Any
) -> tuple[httpx.Response, ScriptedEngine]:
    engine = ScriptedEngine(events)
    spec = BaselineSpec(model=ModelSpec(max_model_len=64))
    app = Api(spec, engine).app()  # type: ignore[arg-type]

    async def go() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **options)

    return asyncio.run(go()), engine


def post(
    route: str, events: Sequence[Event] = WHOLE, **fields: Any
) -> tuple[httpx.Response, ScriptedEngine]:
    return send("POST", f"/v1/{route}", events, json={"model": MODEL} | fields)


def chunks(response: httpx.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


class TestAnswers:
    def test_whole_completion(self) -> None:
        response, engine = post("completions", prompt=[5, 6, 7], max_tokens=9, ignore_eos=True)
        body = response.json()
        assert engine.calls == [([5, 6, 7], 9, True)]
        assert body["choices"][0] == {
            "index": 0,
            "text": TEXT,
            "logprobs": None,
            "finish_reason": "stop",
        }
        assert body["usage"] == {
            "prompt_tokens": 3,
            "completion_tokens": len(TOKENS),
            "total_tokens": 3 + len(TOKENS),
        }

    def test_streamed_completion_has_one_event_per_token_and_then_the_usage(self) -> None:
        response, _ = post(
            "completions",
            prompt="Continuous",
            stream=True,
            stream_options={"include_usage": True},
        )
        *tokens, usage = chunks(response)
        assert len(tokens) == len(TOKENS)
        assert "".join(chunk["choices"][0]["text"] for chunk in tokens) == TEXT
        ends = [chunk["choices"][0]["finish_reason"] for chunk in tokens]
        assert ends == [None] * (len(TOKENS) - 1) + ["stop"]
        assert usage["usage"]["completion_tokens"] == len(TOKENS)

    def test_chat_uses_the_template_and_the_rest_of_the_context(self) -> None:
        messages = [{"role": "user", "content": "What is a replica?"}]
        response, engine = post("chat/completions", messages=messages)
        text = TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = TOKENIZER.encode(text, add_special_tokens=False)
        assert engine.calls == [(ids, 64 - len(ids), False)]
        message = response.json()["choices"][0]["message"]
        assert message == {"role": "assistant", "content": TEXT}

    def test_streamed_chat_starts_with_the_role(self) -> None:
        messages = [{"role": "user", "content": "Hello"}]
        response, _ = post("chat/completions", messages=messages, stream=True)
        first, *rest = chunks(response)
        assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in rest) == TEXT

    def test_error_of_the_engine(self) -> None:
        events = [Event(0, TOKENS[:1]), Event(0, [], error="out of memory")]
        response, _ = post("completions", events, prompt="a")
        assert response.status_code == 500
        assert response.json()["error"]["message"] == "out of memory"
        response, _ = post("completions", events, prompt="a", stream=True)
        assert chunks(response)[-1]["error"]["code"] == "engine_error"


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "status", "message"),
        [
            ({"temperature": 0.7}, 400, "temperature must be left out"),
            ({"prompt": []}, 400, "prompt must not be empty"),
            ({"prompt": [2048]}, 400, "ids in 0..2047 only"),
            ({"prompt": None}, 400, "prompt is required"),
            ({"prompt": [5] * 60, "max_tokens": 5}, 400, "64 tokens"),
            ({"max_tokens": 0}, 400, "max_tokens"),
        ],
    )
    def test_completion(self, fields: dict[str, Any], status: int, message: str) -> None:
        response, engine = post("completions", **{"prompt": "a"} | fields)
        assert response.status_code == status
        assert message in response.json()["error"]["message"]
        assert engine.calls == []

    def test_neutral_and_ignored_fields_are_accepted(self) -> None:
        response, _ = post("completions", prompt="a", temperature=0, n=1, seed=4, user="ada")
        assert response.status_code == 200

    def test_chat_needs_messages(self) -> None:
        response, _ = post("chat/completions", prompt="a")
        assert "messages is required" in response.json()["error"]["message"]


def test_stats_and_unsupported_routes() -> None:
    response, _ = send("GET", "/load")
    assert response.json() == {"requests": 7}
    for method, path in (("GET", "/nothing"), ("POST", "/v1/embeddings"), ("POST", "/v1/messages")):
        response, _ = send(method, path)
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (404, "unsupported_route")
        assert f"{path}: there is no such route" in error["message"]
