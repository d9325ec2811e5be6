"""Baselines: transformers' own `generate` in this process is the truth about tokens."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from support.shared_service import Deployed

from serving.baselines.engine_client import Engine
from serving.baselines.requests import Event, Job, Row, is_out_of_memory
from serving.errors import SpecError
from serving.models.embedded import tiny_model_path
from serving.spec.baseline import (
    BaselineSpec,
    Continuous,
    DynamicBatches,
    OneAtATime,
    StaticBatches,
    Strategy,
    strategies,
)
from serving.spec.model import ModelSpec
from serving.spec.scaling import ScalingSpec
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
WANTED = [24, 3, 17, 9, 30]
QUESTION = [{"role": "user", "content": "What is continuous batching?"}]
KV_BYTES = 4096  # of the embedded model in float32: 2 x 4 layers x 2 heads x 64 x 4 bytes


class TestSpec:
    def test_a_baseline_stands_beside_a_service_with_the_same_model(self) -> None:
        kwargs = {"load_format": "dummy", "max_num_seqs": 8}
        scaling = ScalingSpec(max_ongoing_requests=99)
        model = ModelSpec(engine_kwargs=kwargs, scaling=scaling, num_cpus=2)
        service = ServiceSpec(name="llm", model=model, port=8123)
        found = BaselineSpec.beside(service, OneAtATime())
        assert (found.name, found.route_prefix, found.port) == ("llm-one", "/one", 0)
        assert found.model.engine_kwargs == {"load_format": "dummy"}
        assert found.model.model_copy(update={"engine_kwargs": kwargs}) == model

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            ({"tensor_parallel_size": 2}, "lies on one device"),
            ({"scaling": ScalingSpec(min_replicas=0)}, "does not sleep"),
            ({"engine_kwargs": {"max_num_seqs": 8}}, r"\['max_num_seqs'\] = 8 is for vLLM"),
        ],
    )
    def test_what_transformers_cannot_is_refused(self, model: Any, message: str) -> None:
        with pytest.raises(SpecError, match=message):
            BaselineSpec(model=ModelSpec(**model))

    def test_another_strategy_needs_other_replicas_and_another_limit_does_not(self) -> None:
        static, other = BaselineSpec(), BaselineSpec(strategy=StaticBatches(batch_size=8))
        assert static.engine_fingerprint() != other.engine_fingerprint()
        more = BaselineSpec(model=ModelSpec(scaling=ScalingSpec(max_replicas=2)))
        assert more.engine_fingerprint() == static.engine_fingerprint()

    def test_kinds_and_labels_are_told_apart(self) -> None:
        found = strategies(7)
        assert {name: one.kind for name, one in found.items()} == {n: n for n in found}
        assert len({one.label for one in found.values()}) == 4
        assert "7" in found["static"].label

    def test_on_a_gpu_the_replica_itself_holds_the_card(self) -> None:
        from serving.deploy.app import application
        from serving.spec.tenants import Tenant, key_hash

        model = ModelSpec(accelerator="gpu", num_gpus=0.5, num_cpus=2)
        owner = Tenant(name="owner", key_hash=key_hash("sk-" + "x" * 40))
        made = application(BaselineSpec(model=model), (owner,))._bound_deployment
        assert made.ray_actor_options["num_gpus"] == 0.5
        assert made.ray_actor_options["num_cpus"] == 2


class TestRows:
    def test_a_row_ends_at_its_length_or_at_an_end_token_it_respects(self) -> None:
        eos = frozenset({2})
        long, short = Row(Job(0, [9], 2, True)), Row(Job(1, [9], 5, False))
        assert [long.take(2, eos).finish, long.take(7, eos).finish] == [None, "length"]
        assert [short.take(7, eos).finish, short.take(2, eos).finish] == [None, "stop"]
        assert (long.ended, short.ended, short.ids, short.left) == (True, True, [9, 7, 2], 3)

    def test_torch_says_itself_that_memory_ran_out(self) -> None:
        import torch

        with pytest.raises(RuntimeError) as caught:
            torch.empty(10**16, dtype=torch.uint8)
        assert is_out_of_memory(caught.value)
        assert is_out_of_memory("CUDA out of memory. Tried to allocate 2.00 GiB.")
        assert not is_out_of_memory(RuntimeError("shapes do not match"))


@pytest.fixture(scope="module")
def truth() -> dict[str, Any]:
    """Prompts, and what transformers makes of each alone, greedily and without padding."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = tiny_model_path()
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    prompts = [tokenizer.encode(text) for text in TEXTS]
    answers = []
    for prompt, tokens in zip(prompts, WANTED, strict=True):
        fixed = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
        out = model.generate(torch.tensor([prompt]), eos_token_id=None, **fixed)
        answers.append(out[0, len(prompt) :].tolist())
    return {"prompts": prompts, "answers": answers}


def spec(strategy: Strategy, **model: Any) -> BaselineSpec:
    """In float32, where padding does not change which token is the likeliest."""
    fields = {"dtype": "float32", "max_model_len": 512} | model
    return BaselineSpec(model=ModelSpec(**fields), strategy=strategy)


@asynccontextmanager
async def running(wanted: BaselineSpec) -> AsyncIterator[Engine]:
    engine = Engine(wanted.model_dump(mode="json"))
    await engine.start()
    try:
        yield engine
    finally:
        engine.stop()


async def ask(
    engine: Engine, number: int, prompt: Sequence[int], tokens: int, log: list[tuple[int, Event]]
) -> list[int]:
    """One answer; `log` gets its events among those of the others."""
    made: list[int] = []
    async for event in engine.generate(list(prompt), tokens, ignore_eos=True):
        log.append((number, event))
        made += event.tokens
    return made


async def ask_all(
    engine: Engine, truth: dict[str, Any]
) -> tuple[list[list[int]], list[tuple[int, Event]]]:
    log: list[tuple[int, Event]] = []
    prompts = enumerate(zip(truth["prompts"], WANTED, strict=True))
    calls = (ask(engine, number, prompt, tokens, log) for number, (prompt, tokens) in prompts)
    answers = await asyncio.gather(*calls)
    await asyncio.sleep(0.2)  # what was counted comes behind the last token
    return list(answers), log


def bounds(log: Sequence[tuple[int, Event]], number: int) -> tuple[int, int]:
    """Where in the log a request's first and last events stand."""
    places = [place for place, (one, _) in enumerate(log) if one == number]
    return places[0], places[-1]


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
    def test_every_row_gets_transformers_own_answer_of_its_own_length(
        self, truth: dict[str, Any], strategy: Strategy, largest: int
    ) -> None:
        async def go() -> tuple[Any, Any, Any]:
            async with running(spec(strategy)) as engine:
                return *(await ask_all(engine, truth)), dict(engine.stats)

        answers, log, stats = asyncio.run(go())
        assert answers == truth["answers"]
        assert {log[bounds(log, i)[1]][1].finish for i in range(5)} == {"length"}
        assert stats["largest_batch"] == largest
        assert (stats["requests"], stats["output_tokens"]) == (5, sum(WANTED))
        assert stats["prompt_tokens"] == sum(map(len, truth["prompts"]))
        assert (stats["dtype"], stats["threads"]) == ("float32", 1)
        assert stats["kv_bytes_per_token"] == KV_BYTES
        self.check_order(log, strategy, stats, truth)

    def check_order(
        self, log: Any, strategy: Strategy, stats: dict[str, Any], truth: dict[str, Any]
    ) -> None:
        prompts = [len(prompt) for prompt in truth["prompts"]]
        if isinstance(strategy, OneAtATime):
            assert all(bounds(log, i)[1] < bounds(log, i + 1)[0] for i in range(4))
            assert stats["kv_slots"] == stats["kv_used"]
        elif isinstance(strategy, StaticBatches):
            # In twos, in their order; nobody starts before both of the two before have ended.
            for first in (2, 4):
                before = max(bounds(log, first - 1)[1], bounds(log, first - 2)[1])
                assert bounds(log, first)[0] > before
            assert stats["batches"] == 3
            assert stats["steps"] == 24 + 17 + 30
            padded = [max(prompts[:2]) + 24, max(prompts[2:4]) + 17, prompts[4] + 30]
            assert stats["kv_slots"] == 2 * padded[0] + 2 * padded[1] + padded[2]
        else:
            # All at once: each has begun before anybody has ended.
            firsts = [bounds(log, i)[0] for i in range(5)]
            assert max(firsts) < bounds(log, 1)[1]

    def test_a_batch_that_does_not_fit_is_a_result_and_goes_on_in_halves(
        self, truth: dict[str, Any]
    ) -> None:
        """Room for 150 tokens: five rows of the longest prompt and 30 more need more, two fit."""
        room = 150 * KV_BYTES / 2**30

        async def go() -> tuple[Any, Any, Any]:
            tight = spec(StaticBatches(batch_size=8, quiet_s=0.3), kv_cache_gib=room)
            async with running(tight) as engine:
                answers, _ = await ask_all(engine, truth)
                too_long = [e async for e in engine.generate([5] * 200, 4, True)]
                await asyncio.sleep(0.2)
                return answers, too_long, dict(engine.stats)

        answers, too_long, stats = asyncio.run(go())
        assert answers == truth["answers"]
        row = max(map(len, truth["prompts"])) + max(WANTED)
        assert 5 * row > 150 >= 3 * row
        assert stats["out_of_memory"][0] == {"batch_size": 5, "tokens_a_row": row}
        assert stats["out_of_memory"][-1] == {"batch_size": 1, "tokens_a_row": 204}
        assert stats["largest_batch"] == 3
        assert [e.error for e in too_long] == ["out of memory at batch size 1 with 204 tokens"]

    def test_an_end_token_ends_it_and_who_leaves_is_forgotten(self) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(tiny_model_path())
        chat = [{"role": "user", "content": "What is continuous batching?"}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = tokenizer.encode(text, add_special_tokens=False)

        async def go() -> tuple[list[Event], dict[str, Any]]:
            async with running(spec(StaticBatches(batch_size=1))) as engine:
                endless = engine.generate(ids, 450, ignore_eos=True)
                await anext(endless)
                await endless.aclose()
                found = [event async for event in engine.generate(ids, 200, ignore_eos=False)]
                await asyncio.sleep(0.2)
                return found, dict(engine.stats)

        found, stats = asyncio.run(go())
        made = [token for event in found for token in event.tokens]
        assert found[-1].finish == "stop"
        assert made[-1] == tokenizer.eos_token_id
        assert len(made) < 200
        assert stats["steps"] < 450 + len(made), "the batch went on for nobody"

    def test_random_weights_need_a_config_alone_and_a_dead_engine_is_told(
        self, tmp_path: Path
    ) -> None:
        """One engine for both, as it takes seconds to start."""
        shutil.copy(tiny_model_path() / "config.json", tmp_path)
        kwargs = {"load_format": "dummy", "tokenizer": str(tiny_model_path())}
        model = {"source": str(tmp_path), "engine_kwargs": kwargs}

        async def go() -> tuple[list[int], list[Event], str]:
            async with running(spec(OneAtATime(), **model)) as engine:
                made = await ask(engine, 0, [5, 6, 7], 6, [])
                engine.check()
                events = engine.generate([5, 6], 400, ignore_eos=True)
                found = [await anext(events)]
                engine._process.kill()
                found += [event async for event in events]
                with pytest.raises(RuntimeError) as caught:
                    engine.check()
                return made, found, str(caught.value)

        made, found, said = asyncio.run(go())
        assert len(made) == 6
        assert found[-1].error == said == "the engine's process has ended"
        assert ModelSpec(**model).tokenizer == str(tiny_model_path())

    def test_a_model_that_does_not_load_says_why(self, truncated_model: Path) -> None:
        async def go() -> None:
            async with running(spec(OneAtATime(), source=str(truncated_model))):
                pass

        with pytest.raises(RuntimeError, match=r"last words:\n\w*Error"):
            asyncio.run(go())


@pytest.fixture(scope="module")
def baseline(deployed: Deployed) -> Iterator[Endpoint]:
    """Static batches beside the shared engine, with the same model and limits."""
    service = deployed.endpoint.spec
    assert isinstance(service, ServiceSpec)
    made = BaselineSpec.beside(service, StaticBatches(batch_size=4, quiet_s=0.05))
    with deploy(made, progress=lambda line: None) as endpoint:
        yield endpoint


def headers(endpoint: Endpoint) -> dict[str, str]:
    return {"authorization": f"Bearer {endpoint.api_key.get_secret_value()}"}


@pytest.mark.engine
class TestDeployed:
    def test_it_answers_what_vllm_answers(self, endpoint: Endpoint, baseline: Endpoint) -> None:
        request: dict[str, Any] = {"prompt": "Continuous batching is", "max_tokens": 12}
        request |= {"model": endpoint.model_id, "temperature": 0}
        one, other = (e.client.completions.create(**request) for e in (endpoint, baseline))
        assert one.choices[0].text == other.choices[0].text
        assert one.choices[0].finish_reason == other.choices[0].finish_reason == "length"
        assert one.usage
        assert other.usage
        assert one.usage.total_tokens == other.usage.total_tokens
        chat: dict[str, Any] = {"model": endpoint.model_id, "messages": QUESTION}
        chat |= {"max_tokens": 120, "temperature": 0}
        said = [e.client.chat.completions.create(**chat).choices[0] for e in (endpoint, baseline)]
        assert said[0].message.content == said[1].message.content
        assert {one.finish_reason for one in said} == {"stop"}

    def test_streamed_and_whole_answers_agree_and_tokens_are_counted(
        self, baseline: Endpoint
    ) -> None:
        request: dict[str, Any] = {"model": baseline.model_id, "prompt": [5, 6, 7, 8]}
        request |= {"max_tokens": 9, "extra_body": {"ignore_eos": True}}
        whole = baseline.client.completions.create(**request)
        options = {"stream": True, "stream_options": {"include_usage": True}}
        chunks = list(baseline.client.completions.create(**request, **options))
        assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
        assert sum(bool(c.choices) for c in chunks) == 9, "an event a token"
        assert chunks[-1].usage == whole.usage
        assert whole.usage
        assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (4, 9)
        assert [m.id for m in baseline.client.models.list()] == [baseline.model_id]
        card = baseline.client.models.retrieve(baseline.model_id)
        assert card.model_extra == {"max_model_len": 1024}

    @pytest.mark.parametrize(
        ("change", "error", "said"),
        [
            ({"model": "no-such-model"}, openai.NotFoundError, "no-such-model"),
            ({"temperature": 0.7}, openai.BadRequestError, "temperature = 0.7"),
            ({"n": 2}, openai.BadRequestError, "n = 2"),
            ({"prompt": ["a", "b"]}, openai.BadRequestError, "prompt"),
            ({"prompt": [99999]}, openai.BadRequestError, "outside 0..2047"),
            ({"prompt": []}, openai.BadRequestError, "prompt"),
            ({"prompt": [5] * 1020, "max_tokens": 8}, openai.BadRequestError, "1024 tokens"),
            ({"max_tokens": 0}, openai.BadRequestError, "max_tokens"),
        ],
    )
    def test_what_it_cannot_is_refused_by_name(
        self, baseline: Endpoint, change: dict[str, Any], error: type[Exception], said: str
    ) -> None:
        request = {"model": baseline.model_id, "prompt": "a", "max_tokens": 4} | change
        with pytest.raises(error) as caught:
            baseline.client.completions.create(**request)
        assert said in str(caught.value)

    def test_without_the_key_every_route_but_health_is_closed(self, baseline: Endpoint) -> None:
        root = baseline.base_url.removesuffix("/v1")
        wrong = {"authorization": "Bearer sk-wrong-wrong-wrong-wrong"}
        for key in (wrong, {}):
            with httpx.Client(base_url=root, headers=key) as client:
                gets = [client.get(path) for path in ("/v1/models", "/load", "/nothing")]
                posts = [client.post(f"/v1/{p}", json={}) for p in ("completions",)]
                assert {r.status_code for r in gets + posts} == {401}
                assert client.get("/health").status_code == 200
        unknown = httpx.get(f"{root}/nothing", headers=headers(baseline))
        assert unknown.status_code == 404
        assert "no such route" in unknown.json()["error"]["message"]

    @pytest.mark.parametrize("body", [b"{bad", b"", b"[1]", b"\xff\xfe"])
    def test_a_malformed_body_is_a_400_in_openais_shape(
        self, baseline: Endpoint, body: bytes
    ) -> None:
        reply = httpx.post(
            f"{baseline.base_url}/completions", content=body, headers=headers(baseline)
        )
        assert reply.status_code == 400
        assert reply.json()["error"]["message"]

    def test_a_contest_with_vllm(
        self, endpoint: Endpoint, baseline: Endpoint, tmp_path: Path
    ) -> None:
        """Both get the same prompts and answer all of them, to the token."""
        run = Run.create(tmp_path, {"notebook": "04"}, run_id="r")
        load = LoadSpec(
            arrivals=ClosedLoop(max_concurrency=4),
            prompts=RandomPrompts(input=Uniform(low=4, high=20), output=Uniform(low=2, high=20)),
            count=6,
        )
        before = engine_stats(baseline)
        found = asyncio.run(
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
        assert len(found.pairs()) == 2
        assert all(ours > 0 and theirs > 0 for ours, theirs in found.pairs())
        assert not [caveat for caveat in found.caveats() if "failed" in caveat]
        assert [(m.side, m.repeat) for m in found.measured] == [
            ("candidate", 0),
            ("baseline", 0),
            ("baseline", 1),
            ("candidate", 1),
        ]
        sent = {m.run.path.name: wanted(m.run) for m in found.measured}
        for repeat in (0, 1):
            ours, theirs = sent[f"static-{repeat}-ours"], sent[f"static-{repeat}-theirs"]
            assert len(ours) == 6
            assert theirs == ours[:5], "what a smaller count sends are the first of the same"
        assert sent["static-0-ours"] != sent["static-1-ours"]
        assert found.stats["requests"] - before.get("requests", 0) == 5 + 2 * 5
        assert found.stats["largest_batch"] <= 4

    def test_the_engine_was_given_as_many_threads_as_vllm(self, baseline: Endpoint) -> None:
        stats = engine_stats(baseline)
        number_type = baseline.spec.models[0].number_type
        assert (stats["threads"], stats["dtype"], stats["device"]) == (1, number_type, "cpu")
        assert stats["attention"] == "sdpa"


def wanted(run: Run) -> list[tuple[int | None, int | None]]:
    """Prompt and output tokens of each request, by the number in its id."""
    records = sorted(run.records(), key=lambda r: int(r.request_id.split("-")[-2]))
    return [(r.prompt_tokens, r.output_tokens) for r in records]
