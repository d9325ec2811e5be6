"""Which model answers: by rule, by classifier, and by health. Ground truth: handmade requests."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from serving.engine.http_call import Progress, ResponseStart
from serving.gateway.config import GateConfig, ServedModel
from serving.gateway.context import RequestContext
from serving.gateway.stages import StageTimings
from serving.guardrail.guard import RefusedError
from serving.guardrail.texts import RequestTexts
from serving.pipeline.config import PipelineConfig, pick_model
from serving.pipeline.dispatcher import HEALTH_MAX_AGE_S, Dispatcher, ModelHealth, ModelState
from serving.pipeline.router_rules import Decision, RoutingInput, contains_code, decide, language
from serving.spec.router import (
    BudgetRule,
    CodeRule,
    EmbeddingClassifier,
    LanguageRule,
    LengthRule,
    RouterSpec,
    TenantRule,
)
from serving.spec.tenants import Tenant

MODELS = ("large", "small")
ANYONE = Tenant(name="anyone")


def routing_input(*texts: str, **fields: Any) -> RoutingInput:
    defaults: dict[str, Any] = {"max_tokens": None, "tenant": None, "budget": None}
    return RoutingInput(texts=texts, **(defaults | fields))


def decided(*rules: Any, of: RoutingInput, **fields: Any) -> Decision:
    return decide(of, RouterSpec(rules=rules, **fields), MODELS)


class TestRules:
    def test_without_rules_the_default_answers(self) -> None:
        assert decided(of=routing_input("x")) == ("large", "default")
        assert decided(of=routing_input("x"), default="small") == ("small", "default")

    @pytest.mark.parametrize(("chars", "model"), [(0, "large"), (9, "large"), (10, "small"),
                                                   (20, "small"), (21, "large")])  # fmt: skip
    def test_length_counts_every_text_and_includes_both_bounds(
        self, chars: int, model: str
    ) -> None:
        rule = LengthRule(model="small", min_chars=10, max_chars=20)
        decision = decided(rule, of=routing_input("x" * (chars // 2), "x" * (chars - chars // 2)))
        assert decision.model == model
        if model == "small":
            assert decision.reason == f"rule 1: {chars} characters"

    @pytest.mark.parametrize(
        "text",
        [
            "Fix this:\n```\nx = 1\n```",
            "def f(x):\n    return x",
            "class A(B):\n    pass",
            "from a import b",
            "#include <stdio.h>",
            "const x = (a) => a + 1;",
            "for (i = 0; i < 9; i++) {\n}",
            "SELECT a FROM b WHERE c",
            "fn main() {\n}",
        ],
    )
    def test_code(self, text: str) -> None:
        assert contains_code(text)
        decision = decided(CodeRule(model="small"), of=routing_input(text))
        assert decision == ("small", "rule 1: the request contains code")

    @pytest.mark.parametrize(
        "text",
        [
            "What is a tensor?",
            "Let me know; thanks.",
            "Import duties and classes of goods:\nthey differ.",
            "For (nearly) everyone, this holds.",
            "The class of the function was public.",
        ],
    )
    def test_prose_is_not_code(self, text: str) -> None:
        assert not contains_code(text)

    @pytest.mark.parametrize(
        ("text", "name"),
        [
            ("What is the weather like in this town?", "en"),
            ("Wie ist das Wetter und was ziehe ich an?", "de"),
            ("Quel temps fait-il dans cette ville ?", "fr"),
            ("¿Qué tiempo hace hoy en la ciudad?", "es"),
            ("Che tempo fa oggi nella città?", "it"),
            ("Какая сегодня погода?", "ru"),
            ("今日の天気はどうですか", "ja"),
            ("今天天气怎么样", "zh"),
            ("오늘 날씨 어때요", "ko"),
            ("12345 67", None),
            ("", None),
        ],
    )
    def test_language(self, text: str, name: str | None) -> None:
        assert language(text) == name

    def test_the_last_text_decides_the_language(self) -> None:
        rule = LanguageRule(model="small", languages=("de", "fr"))
        german, english = "Was ist denn das?", "What is this and that?"
        assert (
            decided(rule, of=routing_input(english, german)).reason == "rule 1: the language is de"
        )
        assert decided(rule, of=routing_input(german, english)).model == "large"

    def test_tenant(self) -> None:
        rule = TenantRule(model="small", tenants=("class-a",))
        assert decided(rule, of=routing_input("x", tenant="class-a")).model == "small"
        assert decided(rule, of=routing_input("x", tenant="other")).model == "large"
        assert decided(rule, of=routing_input("x")).model == "large"

    def test_the_first_rule_that_applies_decides(self) -> None:
        rules = (LengthRule(model="large", min_chars=100), CodeRule(model="small"))
        assert decided(*rules, of=routing_input("def f():\n pass")).reason.startswith("rule 2: ")
        assert decided(*rules, of=routing_input("def f():\n pass\n" * 20)).reason.startswith(
            "rule 1: "
        )


PRICES = {"large": 10.0, "small": 1.0}


class TestBudgets:
    @pytest.mark.parametrize(
        ("budget", "model", "relation"),
        [("0.01", "large", "within"), ("0.0009", "small", "the cheapest, above"),
         ("0.005", "small", "within")],
    )  # fmt: skip
    def test_the_first_model_within_the_budget_answers(
        self, budget: str, model: str, relation: str
    ) -> None:
        # 400 characters are 100 tokens; with 900 tokens of the answer, $0.01 or $0.001.
        asked = routing_input("x" * 400, max_tokens=900, budget=budget)
        decision = decided(BudgetRule(usd_per_million_tokens=PRICES), of=asked)
        assert decision.model == model
        assert relation in decision.reason

    def test_without_a_budget_the_next_rule_applies(self) -> None:
        rule = BudgetRule(usd_per_million_tokens=PRICES)
        assert decided(rule, LengthRule(model="small"), of=routing_input("x")).reason.startswith(
            "rule 2"
        )
        own = BudgetRule(usd_per_million_tokens=PRICES, usd_per_request=1e-9)
        assert decided(own, of=routing_input("x")).model == "small"

    @pytest.mark.parametrize("header", ["", "-1", "nan", "inf", "1e999", "x\r\nset-cookie: a", "0"])
    def test_an_invalid_amount_is_ignored(self, header: str) -> None:
        asked = routing_input("x", budget=header)
        assert decided(BudgetRule(usd_per_million_tokens=PRICES), of=asked).reason == "default"


class TestClassifier:
    SPEC = RouterSpec(
        rules=(LengthRule(model="large", min_chars=1000),),
        classifier=EmbeddingClassifier(
            path="x", examples={"large": ("a",), "small": ("b",)}, min_margin=0.1
        ),
    )

    def test_the_classifier_decides_without_a_rule_and_only_with_a_margin(self) -> None:
        near = {"large": 0.2, "small": 0.9}
        decision = decide(routing_input("x"), self.SPEC, MODELS, lambda text: near)
        assert decision == ("small", "classifier: similarity 0.90, ahead by 0.70")
        close = {"large": 0.85, "small": 0.9}
        assert decide(routing_input("x"), self.SPEC, MODELS, lambda text: close).reason == "default"
        long = decide(routing_input("x" * 1000), self.SPEC, MODELS, lambda text: near)
        assert long.reason.startswith("rule 1")


class Handle:
    """A scripted handle of the router: returns a decision, or fails."""

    def __init__(self, answer: Decision | Exception) -> None:
        self.answer = answer
        self.asked: list[RoutingInput] = []
        self.decide = self

    async def remote(self, routing_input: RoutingInput) -> Decision:
        self.asked.append(routing_input)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def chat(*texts: str, **fields: Any) -> RequestTexts:
    messages = [{"role": "user", "content": text} for text in texts]
    return RequestTexts("/v1/chat/completions", {"messages": messages} | fields)


def pipeline_config(**router: Any) -> PipelineConfig:
    capacity = {"a": 2, "b": 2, "c": 2}
    return PipelineConfig(
        router=RouterSpec(**router),
        capacity=capacity,
        deployments={name: name for name in capacity},
    )


def chosen(handle: Handle, tenant: Tenant = ANYONE, **router: Any) -> tuple[tuple[str, ...], str]:
    config = pipeline_config(**router)
    access = GateConfig(
        tenants=(tenant.model_copy(update={"key_hash": "0" * 64}),),
        models=tuple(ServedModel(id=name) for name in config.capacity),
        auto=True,
        max_ongoing_requests=1,
        max_queued_requests=0,
        retry_after_s=1,
    )
    context = RequestContext("/v1/chat/completions", access, tenant, StageTimings())
    request = chat("one", "two", max_tokens=7)
    return asyncio.run(pick_model(config, handle, request, context, "1"))


class TestPickModel:
    def test_the_other_models_follow_in_the_specs_order(self) -> None:
        assert chosen(Handle(Decision("b", "why"))) == (("b", "c", "a"), "why")
        assert chosen(Handle(Decision("b", "why")), fallback=False) == (("b",), "why")

    def test_the_router_gets_only_what_it_needs(self) -> None:
        handle = Handle(Decision("a", ""))
        chosen(handle, Tenant(name="t"))
        (asked,) = handle.asked
        assert asked == routing_input("one", "two", max_tokens=7, tenant="t", budget="1")

    def test_without_a_response_of_the_router_the_default_answers(self) -> None:
        models, reason = chosen(Handle(ConnectionError("secret")), default="c")
        assert models == ("c", "a", "b")
        assert reason == "default: the router does not respond (ConnectionError)"

    def test_only_models_that_the_key_may_use_are_returned(self) -> None:
        tenant = Tenant(name="t", models=("a", "c", "auto"))
        models, reason = chosen(Handle(Decision("b", "why")), tenant)
        assert models == ("c", "a")
        assert reason == "why; this key may not use b"


class Response:
    """A scripted response generator: gives a first packet, raises, or never responds."""

    def __init__(self, first: Any) -> None:
        self.first, self.cancelled = first, False

    async def __anext__(self) -> Any:
        if isinstance(self.first, list):
            return self.first.pop(0)
        if self.first is None:
            await asyncio.sleep(60)
        if isinstance(self.first, Exception):
            raise self.first
        return self.first

    def cancel(self) -> None:
        self.cancelled = True


def start(text: str, status: int = 200) -> ResponseStart:
    return ResponseStart(status, "application/json", text, whole=True)


def dispatcher(down: set[str] | None = None, **capacity: int) -> Dispatcher:
    return with_health(ModelHealth(lambda: dict.fromkeys(down or (), ModelState.DOWN)), **capacity)


def with_health(health: ModelHealth, queue_timeout_s: float = 60, **capacity: int) -> Dispatcher:
    return Dispatcher({"a": 1, "b": 1} | capacity, health, 3, queue_timeout_s)


class TestFallback:
    def sent(self, to: Dispatcher, *candidates: str, **firsts: Any) -> Any:
        self.responses = {name: Response(first) for name, first in firsts.items()}
        self.progress: list[Progress] = []
        start_call = self.responses.__getitem__
        return asyncio.run(to.send(candidates, start_call, self.progress.append))

    def test_the_first_candidate_answers(self) -> None:
        answer = self.sent(dispatcher(), "a", "b", a=start("hello"))
        assert (answer.model, answer.first.text, answer.skipped) == ("a", "hello", [])

    def test_a_saturated_model_is_skipped_until_a_request_ends(self) -> None:
        to = dispatcher()
        assert self.sent(to, "a", "b", a=start("x")).model == "a"
        answer = self.sent(to, "a", "b", b=start("x"))
        assert (answer.model, answer.skipped) == ("b", ["a: saturated"])
        to.finish("a")
        assert self.sent(to, "a", "b", a=start("x")).model == "a"

    def test_a_full_service_responds_429(self) -> None:
        to = dispatcher(a=0, b=0)
        with pytest.raises(RefusedError, match="Try again in 3 s") as caught:
            self.sent(to, "a", "b")
        assert (caught.value.status, caught.value.kind) == (429, "rate_limit_error")
        assert caught.value.headers == {"retry-after": "3"}

    def test_a_model_that_is_down_is_skipped(self) -> None:
        answer = self.sent(dispatcher(down={"a"}), "a", "b", b=start("x"))
        assert (answer.model, answer.skipped) == ("b", ["a: down"])

    def test_a_model_that_goes_down_meanwhile_is_skipped(self) -> None:
        states = iter([{"a": ModelState.RUNNING}, {"a": ModelState.DOWN}])
        to = with_health(ModelHealth(lambda: next(states)))
        answer = self.sent(to, "a", "b", a=None, b=start("x"))
        assert (answer.model, answer.skipped) == ("b", ["a: down"])
        assert self.responses["a"].cancelled
        assert to.running == {"a": 0, "b": 1}

    def test_the_only_candidate_is_tried_even_if_it_is_down(self) -> None:
        assert self.sent(dispatcher(down={"a"}), "a", a=start("x")).model == "a"

    def test_after_a_failure_before_the_first_packet_another_model_answers(self) -> None:
        from ray.exceptions import RayActorError, RayTaskError
        from ray.serve.exceptions import BackPressureError

        full = BackPressureError(num_queued_requests=1, max_queued_requests=1)
        bug = RayTaskError("f", "trace of a prompt", ValueError("a prompt"))
        for failure, reason in (
            (full, "a: saturated"),
            (RayActorError(), "a: failed (RayActorError)"),
            (bug, "a: failed (RayTaskError)"),
        ):
            answer = self.sent(dispatcher(), "a", "b", a=failure, b=start("x"))
            assert (answer.model, answer.skipped) == ("b", [reason])

    def test_an_engine_that_answers_with_a_failure_is_skipped_unless_it_is_the_last(self) -> None:
        answer = self.sent(dispatcher(), "a", "b", a=start("", 500), b=start("x"))
        assert (answer.model, answer.skipped) == ("b", ["a: failed"])
        answer = self.sent(dispatcher(), "a", "b", a=start("", 400))
        assert (answer.model, answer.first.status) == ("a", 400), "the request is at fault"
        answer = self.sent(dispatcher(), "a", a=start("", 500))
        assert (answer.model, answer.first.status) == ("a", 500)

    def test_the_last_candidates_failure_is_raised(self) -> None:
        from ray.exceptions import RayActorError, RayTaskError

        with pytest.raises(RefusedError, match=r"b: failed \(RayActorError\)") as caught:
            self.sent(dispatcher(), "a", "b", a=RayActorError(), b=RayActorError())
        assert caught.value.status == 503
        with pytest.raises(RayTaskError):
            self.sent(dispatcher(), "a", a=RayTaskError("f", "trace", ValueError("x")))

    @pytest.mark.parametrize("state", [ModelState.DOWN, ModelState.STARTING])
    def test_a_request_waits_for_a_replica_of_the_last_model_only_so_long(
        self, state: ModelState
    ) -> None:
        to = with_health(ModelHealth(lambda: {"a": state}), queue_timeout_s=0.3)
        began = time.monotonic()
        with pytest.raises(RefusedError, match=r"a: no replica ran for 0\.3 s") as caught:
            self.sent(to, "a", a=None)
        assert 0.3 <= time.monotonic() - began < 30
        assert (caught.value.status, caught.value.headers) == (503, {"retry-after": "3"})
        assert self.responses["a"].cancelled
        assert to.running == {"a": 0}

    def test_a_request_in_progress_at_a_replica_may_take_longer(self) -> None:
        to = with_health(ModelHealth(lambda: {"a": ModelState.RUNNING}), queue_timeout_s=0.1)

        async def run() -> None:
            async with asyncio.timeout(1):
                await to.send(("a",), lambda _: Response(None), lambda _: None)

        with pytest.raises(TimeoutError):
            asyncio.run(run())

    def test_progress_is_reported_before_the_answer(self) -> None:
        answer = self.sent(dispatcher(), "a", a=[Progress(5, 1), Progress(5, 9), start("x")])
        assert answer.first.text == "x"
        assert self.progress == [(5, 1), (5, 9)]

    def test_health_is_cached(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert HEALTH_MAX_AGE_S <= 2
        monkeypatch.setattr("serving.pipeline.dispatcher.HEALTH_MAX_AGE_S", 60.0)
        asked = []

        def states() -> dict[str, ModelState]:
            asked.append(1)
            raise ConnectionError

        async def run() -> None:
            health = ModelHealth(states)
            for _ in range(5):
                assert not await health.is_down("a")

        asyncio.run(run())
        assert len(asked) == 1
