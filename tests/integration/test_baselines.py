"""Baselines, against the tokens of transformers' own `generate` in this process."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from support.shared_service import Deployed

from serving.baselines.engine_client import EngineClient
from serving.baselines.requests import Event
from serving.models.embedded import tiny_model_path
from serving.spec.baseline import (
    BaselineSpec,
    Continuous,
    DynamicBatches,
    OneAtATime,
    StaticBatches,
    Strategy,
)
from serving.spec.model import ModelSpec
from serving.spec.service import ServiceSpec
from workbench.endpoints.deployed import Endpoint, deploy
from workbench.experiments.paired_runner import engine_stats, run_alternating
from workbench.runs.run import Run
from workbench.workload.arrivals import ClosedLoop
from workbench.workload.prompts import RandomPrompts, Uniform
from workbench.workload.spec import LoadSpec

TEXTS = [
    "Continuous batching is",
    "A replica is one copy of",
    "What is paged attention, and why does it",
    "Autoscaling means that",
    "The",
]
OUTPUT_TOKENS = [24, 3, 17, 9, 30]
QUESTION = [{"role": "user", "content": "What is continuous batching?"}]
LONG = 1900
"""Tokens of an answer that takes seconds, so that a slow test can act while it is written."""
KV_BYTES = 4096  # per token in float32: 2 x 4 layers x 2 heads x 64 x 4 bytes


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """Return prompts, and transformers' greedy answer to each alone, without padding."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = tiny_model_path()
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    prompts = [tokenizer.encode(text) for text in TEXTS]
    answers = []
    for prompt, tokens in zip(prompts, OUTPUT_TOKENS, strict=True):
        fixed = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
        out = model.generate(torch.tensor([prompt]), eos_token_id=None, **fixed)
        answers.append(out[0, len(prompt) :].tolist())
    return {"prompts": prompts, "answers": answers}


def make_spec(strategy: Strategy, **model: Any) -> BaselineSpec:
    """Return a spec in float32, where padding does not change the most likely token."""
    fields = {"dtype": "float32", "max_model_len": 512} | model
    return BaselineSpec(model=ModelSpec(**fields), strategy=strategy)


@asynccontextmanager
async def running(spec: BaselineSpec) -> AsyncIterator[EngineClient]:
    engine = EngineClient(spec.model_dump(mode="json"))
    await engine.start()
    try:
        yield engine
    finally:
        engine.stop()


async def ask(
    engine: EngineClient,
    number: int,
    prompt: Sequence[int],
    tokens: int,
    log: list[tuple[int, Event]],
) -> list[int]:
    """Return one answer's tokens. All requests append their events to `log`."""
    output: list[int] = []
    async for event in engine.generate(list(prompt), tokens, ignore_eos=True):
        log.append((number, event))
        output += event.tokens
    return output


async def ask_all(
    engine: EngineClient, expected: dict[str, Any]
) -> tuple[list[list[int]], list[tuple[int, Event]]]:
    log: list[tuple[int, Event]] = []
    prompts = enumerate(zip(expected["prompts"], OUTPUT_TOKENS, strict=True))
    # The engine finds all requests at once, however slowly this process sends them.
    os.kill(engine._process.pid, signal.SIGSTOP)
    try:
        calls = [
            asyncio.create_task(ask(engine, number, prompt, tokens, log))
            for number, (prompt, tokens) in prompts
        ]
        await asyncio.sleep(0)  # each call sends its request before it waits
    finally:
        os.kill(engine._process.pid, signal.SIGCONT)
    answers = await asyncio.gather(*calls)
    await counted(engine, len(calls))
    return list(answers), log


async def counted(engine: EngineClient, requests: int) -> None:
    """Wait until the engine's stats, which follow the last token, have so many requests."""
    deadline = time.monotonic() + 60
    while engine.stats.get("requests") != requests:
        assert time.monotonic() < deadline, engine.stats
        await asyncio.sleep(0.05)


def bounds(log: Sequence[tuple[int, Event]], number: int) -> tuple[int, int]:
    """Return the positions of a request's first and last events in the log."""
    positions = [i for i, (request, _) in enumerate(log) if request == number]
    return positions[0], positions[-1]


@pytest.mark.engine
class TestEngine:
    @pytest.mark.parametrize(
        ("strategy", "largest"),
        [
            (OneAtATime(), 1),
            (StaticBatches(batch_size=2, quiet_s=0.3), 2),
            (DynamicBatches(batch_size=8, window_s=0.3), 5),
            (Continuous(options={"page_size": 16}), 5),
        ],
        ids=lambda value: getattr(value, "kind", None),
    )
    def test_every_request_gets_the_answer_of_transformers(
        self, expected: dict[str, Any], strategy: Strategy, largest: int
    ) -> None:
        async def go() -> tuple[Any, Any, Any]:
            async with running(make_spec(strategy)) as engine:
                return *(await ask_all(engine, expected)), dict(engine.stats)

        answers, log, stats = asyncio.run(go())
        assert answers == expected["answers"]
        assert {log[bounds(log, i)[1]][1].finish for i in range(5)} == {"length"}
        assert stats["largest_batch"] == largest
        assert (stats["requests"], stats["output_tokens"]) == (5, sum(OUTPUT_TOKENS))
        assert stats["prompt_tokens"] == sum(map(len, expected["prompts"]))
        assert (stats["dtype"], stats["threads"]) == ("float32", 1)
        assert stats["kv_bytes_per_token"] == KV_BYTES
        self.check_order(log, strategy, stats, expected)

    def check_order(
        self, log: Any, strategy: Strategy, stats: dict[str, Any], expected: dict[str, Any]
    ) -> None:
        prompts = [len(prompt) for prompt in expected["prompts"]]
        if isinstance(strategy, OneAtATime):
            assert all(bounds(log, i)[1] < bounds(log, i + 1)[0] for i in range(4))
            assert stats["kv_slots"] == stats["kv_used"]
        elif isinstance(strategy, StaticBatches):
            # In pairs and in order; no request starts before both of the pair before have ended.
            for first in (2, 4):
                before = max(bounds(log, first - 1)[1], bounds(log, first - 2)[1])
                assert bounds(log, first)[0] > before
            assert stats["batches"] == 3
            assert stats["steps"] == 24 + 17 + 30
            padded = [max(prompts[:2]) + 24, max(prompts[2:4]) + 17, prompts[4] + 30]
            assert stats["kv_slots"] == 2 * padded[0] + 2 * padded[1] + padded[2]
        else:
            # All at once: each has started before any has ended.
            firsts = [bounds(log, i)[0] for i in range(5)]
            assert max(firsts) < bounds(log, 1)[1]

    def test_batch_that_does_not_fit_continues_in_halves(self, expected: dict[str, Any]) -> None:
        """The cache has room for 150 tokens: for three rows of the longest prompt, not for five."""
        kv_cache_gib = 150 * KV_BYTES / 2**30

        async def go() -> tuple[Any, Any, Any]:
            tight = make_spec(StaticBatches(batch_size=8, quiet_s=0.3), kv_cache_gib=kv_cache_gib)
            async with running(tight) as engine:
                answers, _ = await ask_all(engine, expected)
                before = len(engine.stats["out_of_memory"])
                too_long = [e async for e in engine.generate([5] * 200, 4, True)]
                deadline = time.monotonic() + 60
                while len(engine.stats["out_of_memory"]) == before:
                    assert time.monotonic() < deadline, engine.stats
                    await asyncio.sleep(0.05)
                return answers, too_long, dict(engine.stats)

        answers, too_long, stats = asyncio.run(go())
        assert answers == expected["answers"]
        row = max(map(len, expected["prompts"])) + max(OUTPUT_TOKENS)
        assert 5 * row > 150 >= 3 * row
        assert stats["out_of_memory"][0] == {"batch_size": 5, "tokens_a_row": row}
        assert stats["out_of_memory"][-1] == {"batch_size": 1, "tokens_a_row": 204}
        assert stats["largest_batch"] == 3
        assert [e.error for e in too_long] == ["out of memory at batch size 1 with 204 tokens"]

    def test_answer_ends_at_an_end_token_and_abandoned_requests_are_cancelled(self) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(tiny_model_path())
        chat = [{"role": "user", "content": "What is continuous batching?"}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = tokenizer.encode(text, add_special_tokens=False)

        async def go() -> tuple[list[Event], dict[str, Any]]:
            # The endless answer takes seconds: it is in progress when it is abandoned.
            spec = make_spec(StaticBatches(batch_size=1), max_model_len=LONG + 100)
            async with running(spec) as engine:
                endless = engine.generate(ids, LONG, ignore_eos=True)
                await anext(endless)
                await endless.aclose()
                events = [event async for event in engine.generate(ids, 200, ignore_eos=False)]
                await counted(engine, 2)
                return events, dict(engine.stats)

        events, stats = asyncio.run(go())
        output = [token for event in events for token in event.tokens]
        assert events[-1].finish == "stop"
        assert output[-1] == tokenizer.eos_token_id
        assert len(output) < 200
        assert stats["steps"] < LONG + len(output), "the cancelled batch ran to its end"

    def test_random_weights_need_only_a_config_and_a_dead_engine_is_reported(
        self, tmp_path: Path
    ) -> None:
        """One engine serves both tests, because it takes seconds to start."""
        shutil.copy(tiny_model_path() / "config.json", tmp_path)
        kwargs = {"load_format": "dummy", "tokenizer": str(tiny_model_path())}
        model = {"source": str(tmp_path), "engine_kwargs": kwargs, "max_model_len": LONG + 100}

        async def go() -> tuple[list[int], list[Event], str]:
            async with running(make_spec(OneAtATime(), **model)) as engine:
                output = await ask(engine, 0, [5, 6, 7], 6, [])
                engine.check()
                stream = engine.generate([5, 6], LONG, ignore_eos=True)
                events = [await anext(stream)]
                engine._process.kill()
                events += [event async for event in stream]
                with pytest.raises(RuntimeError) as caught:
                    engine.check()
                return output, events, str(caught.value)

        output, events, message = asyncio.run(go())
        assert len(output) == 6
        assert events[-1].error == message == "the engine's process has ended"
        assert ModelSpec(**model).tokenizer == str(tiny_model_path())

    def test_error_of_a_model_that_does_not_load_is_reported(self, mismatched_model: Path) -> None:
        async def go() -> None:
            async with running(make_spec(OneAtATime(), source=str(mismatched_model))):
                pass

        with pytest.raises(RuntimeError, match=r"engine reported:\n\w*Error"):
            asyncio.run(go())


@pytest.fixture(scope="module")
def baseline(deployed: Deployed) -> Iterator[Endpoint]:
    """Deploy static batches next to the shared engine, with the same model and limits."""
    service = deployed.endpoint.spec
    assert isinstance(service, ServiceSpec)
    baseline = BaselineSpec.from_service(service, StaticBatches(batch_size=4, quiet_s=0.05))
    with deploy(baseline, progress=lambda line: None) as endpoint:
        yield endpoint


def headers(endpoint: Endpoint) -> dict[str, str]:
    return {"authorization": f"Bearer {endpoint.api_key.get_secret_value()}"}


@pytest.mark.engine
class TestDeployed:
    def test_answers_equal_those_of_vllm(self, endpoint: Endpoint, baseline: Endpoint) -> None:
        request: dict[str, Any] = {"prompt": "Continuous batching is", "max_tokens": 12}
        request |= {"model": endpoint.model_id, "temperature": 0}
        ours, theirs = (e.client.completions.create(**request) for e in (baseline, endpoint))
        assert ours.choices[0].text == theirs.choices[0].text
        assert ours.choices[0].finish_reason == theirs.choices[0].finish_reason == "length"
        assert ours.usage
        assert theirs.usage
        assert ours.usage.total_tokens == theirs.usage.total_tokens
        chat: dict[str, Any] = {"model": endpoint.model_id, "messages": QUESTION}
        chat |= {"max_tokens": 120, "temperature": 0}
        ends = (endpoint, baseline)
        choices = [e.client.chat.completions.create(**chat).choices[0] for e in ends]
        assert choices[0].message.content == choices[1].message.content
        assert {choice.finish_reason for choice in choices} == {"stop"}

    def test_streamed_and_whole_answers_agree_and_tokens_are_counted(
        self, baseline: Endpoint
    ) -> None:
        request: dict[str, Any] = {"model": baseline.model_id, "prompt": [5, 6, 7, 8]}
        request |= {"max_tokens": 9, "extra_body": {"ignore_eos": True}}
        whole = baseline.client.completions.create(**request)
        options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
        chunks = list(baseline.client.completions.create(**request, **options))
        assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
        assert sum(bool(c.choices) for c in chunks) == 9, "one event per token"
        assert chunks[-1].usage == whole.usage
        assert whole.usage
        assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (4, 9)
        assert [m.id for m in baseline.client.models.list()] == [baseline.model_id]
        card = baseline.client.models.retrieve(baseline.model_id)
        assert (card.model_extra or {})["max_model_len"] == 1024

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"model": "no-such-model"}, openai.NotFoundError, "no-such-model"),
            (
                {"temperature": 0.7},
                openai.BadRequestError,
                "temperature must be left out, because a baseline decodes greedily, got 0.7",
            ),
            (
                {"n": 2},
                openai.BadRequestError,
                "n must be left out, because a baseline decodes greedily, got 2",
            ),
            ({"prompt": ["a", "b"]}, openai.BadRequestError, "prompt"),
            ({"prompt": [99999]}, openai.BadRequestError, "ids in 0..2047 only"),
            ({"prompt": []}, openai.BadRequestError, "prompt"),
            ({"prompt": [5] * 1020, "max_tokens": 8}, openai.BadRequestError, "1024 tokens"),
            ({"max_tokens": 0}, openai.BadRequestError, "max_tokens"),
        ],
    )
    def test_unsupported_request_is_refused_by_name(
        self, baseline: Endpoint, change: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        request: dict[str, Any] = {"model": baseline.model_id, "prompt": "a", "max_tokens": 4}
        with pytest.raises(error) as caught:
            baseline.client.completions.create(**(request | change))
        assert message in str(caught.value)

    def test_every_route_but_health_needs_the_key(self, baseline: Endpoint) -> None:
        root = baseline.base_url.removesuffix("/v1")
        wrong = {"authorization": "Bearer sk-wrong-wrong-wrong-wrong"}
        for key in (wrong, {}):
            with httpx.Client(base_url=root, headers=key, timeout=60) as client:
                gets = [client.get(path) for path in ("/v1/models", "/load", "/nothing")]
                posts = [client.post(f"/v1/{p}", json={}) for p in ("completions",)]
                assert {r.status_code for r in gets + posts} == {401}
                assert client.get("/health").status_code == 200
        unknown = httpx.get(f"{root}/nothing", headers=headers(baseline), timeout=60)
        assert unknown.status_code == 404
        assert "no such route" in unknown.json()["error"]["message"]

    @pytest.mark.parametrize("body", [b"{bad", b"", b"[1]", b"\xff\xfe"])
    def test_malformed_body_gets_400_in_openais_format(
        self, baseline: Endpoint, body: bytes
    ) -> None:
        reply = httpx.post(
            f"{baseline.base_url}/completions", content=body, headers=headers(baseline), timeout=60
        )
        assert reply.status_code == 400
        assert reply.json()["error"]["message"]

    def test_paired_comparison_with_vllm(
        self, endpoint: Endpoint, baseline: Endpoint, tmp_path: Path
    ) -> None:
        """Both sides get the same prompts, and answer each with the same number of tokens."""
        run = Run.create(tmp_path, {"notebook": "04"}, run_id="r")
        load = LoadSpec(
            arrivals=ClosedLoop(max_concurrency=4),
            prompts=RandomPrompts(input=Uniform(low=4, high=20), output=Uniform(low=2, high=20)),
            count=6,
        )
        before = engine_stats(baseline)
        comparison = asyncio.run(
            run_alternating(
                endpoint,
                baseline,
                load,
                opponent="static",
                repeats=2,
                run=run,
                baseline_count=5,
                progress=None,
            )
        )
        assert len(comparison.pairs()) == 2
        assert all(ours > 0 and theirs > 0 for ours, theirs in comparison.pairs())
        assert not [caveat for caveat in comparison.caveats() if "failed" in caveat]
        assert [(m.side, m.repeat) for m in comparison.measured] == [
            ("candidate", 0),
            ("baseline", 0),
            ("baseline", 1),
            ("candidate", 1),
        ]
        sent = {m.run.path.name: token_counts(m.run) for m in comparison.measured}
        for repeat in (0, 1):
            candidate, reference = (
                sent[f"static-{repeat}-candidate"],
                sent[f"static-{repeat}-baseline"],
            )
            assert len(candidate) == 6
            assert reference == candidate[:5], "a smaller count sends the first of the same prompts"
        assert sent["static-0-candidate"] != sent["static-1-candidate"]
        assert comparison.stats["requests"] - before.get("requests", 0) == 5 + 2 * 5
        assert comparison.stats["largest_batch"] <= 4

    def test_engine_has_as_many_threads_as_vllm(self, baseline: Endpoint) -> None:
        stats = engine_stats(baseline)
        dtype = baseline.spec.models[0].resolved_dtype
        assert (stats["threads"], stats["dtype"], stats["device"]) == (1, dtype, "cpu")
        assert stats["attention"] == "sdpa"


def token_counts(run: Run) -> list[tuple[int | None, int | None]]:
    """Return prompt and output tokens of each request, in the order of the numbers in the ids."""
    records = sorted(run.records(), key=lambda r: int(r.request_id.split("-")[-2]))
    return [(r.prompt_tokens, r.output_tokens) for r in records]
