"""A pipeline of two models, a guardrail and a model router, deployed at its own route.

Ground truth: the answers of the direct path, Serve's status of replicas, and the logs on disk.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import APIError, BadRequestError, NotFoundError, RateLimitError
from support.shared_service import Deployed, session_logs

import workbench as wb
from serving.gateway.stages import STAGES
from workbench.endpoints.deployed import Endpoint

# The first test waits for two deployments or more.
pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

EMAIL, CARD, SECRET = "jane.roe@example.com", "4111 1111 1111 1111", "quxomatic zebra"
QUESTION = "What is a KV cache?"
LARGE, SMALL = "large", "small"
BADGE = """
recognizers:
  - name: Cache words
    supported_entity: CACHE_WORD
    patterns: [{name: word, regex: '\\battention keys\\b', score: 0.9}]
"""
SPEC = wb.PipelineSpec(
    name="pipeline",
    route_prefix="/pipeline",
    port=0,
    models=(
        wb.ModelSpec(id=LARGE, max_model_len=512),
        wb.ModelSpec(
            source="nano",
            id=SMALL,
            max_model_len=2048,
            scaling=wb.ScalingSpec(
                max_ongoing_requests=1, target_ongoing_requests=1, max_queued_requests=0
            ),
        ),
    ),
    guardrail=wb.guardrail.PresidioGuardrail(
        rules=(wb.guardrail.EntityRule(entity="CREDIT_CARD", action="block"),), recognizers=BADGE
    ),
    router=wb.router.RouterSpec(rules=(wb.router.CodeRule(model=LARGE),), default=SMALL),
)


@pytest.fixture(scope="module")
def pipeline(deployed: Deployed) -> Iterator[Endpoint]:
    with wb.deploy(SPEC, progress=lambda line: None) as endpoint:
        yield endpoint


def raw(endpoint: Endpoint, text: str, model: str = "auto", **fields: Any) -> Any:
    options: dict[str, Any] = {"max_tokens": 24, "temperature": 0} | fields
    return endpoint.client.chat.completions.with_raw_response.create(
        model=model, messages=[{"role": "user", "content": text}], **options
    )


def streamed_text(endpoint: Endpoint, text: str, model: str) -> str:
    """Return the whole text of a streamed answer."""
    stream = endpoint.client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": text}],
        max_tokens=60,
        temperature=0,
        stream=True,
    )
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def test_one_endpoint_lists_its_models_and_auto(pipeline: Endpoint) -> None:
    assert [model.id for model in pipeline.client.models.list()] == [LARGE, SMALL, "auto"]
    assert pipeline.model_ids == [LARGE, SMALL, "auto"]
    deployments = pipeline.status().deployments
    assert set(deployments) == {LARGE, SMALL, "guardrail", "router", "ingress"}
    assert all(deployment.running == 1 for deployment in deployments.values())


class TestRouting:
    def test_a_named_model_answers_and_auto_follows_the_rules(self, pipeline: Endpoint) -> None:
        for model, text, routed, reason in (
            (SMALL, "```\nx = 1\n```", SMALL, "named"),
            (LARGE, QUESTION, LARGE, "named"),
            ("auto", QUESTION, SMALL, "default"),
            ("auto", "```\nx = 1\n```", LARGE, "rule 1: the request contains code"),
        ):
            answer = raw(pipeline, text, model)
            assert answer.headers["x-routed-model"] == routed
            assert answer.headers["x-routed-reason"] == reason
            assert answer.parse().model == routed

    def test_an_unknown_name_is_not_found(self, pipeline: Endpoint) -> None:
        with pytest.raises(NotFoundError):
            raw(pipeline, QUESTION, "no-such-model")

    def test_another_model_answers_for_a_saturated_one(self, pipeline: Endpoint) -> None:
        async def run() -> Any:
            client = pipeline.async_client
            body: dict[str, Any] = {"messages": [{"role": "user", "content": QUESTION}]}
            # It takes seconds, so it is still in progress when the other requests arrive.
            long = await client.chat.completions.create(
                model=SMALL, max_tokens=1900, stream=True, extra_body={"ignore_eos": True}, **body
            )
            create = client.chat.completions.with_raw_response.create
            answer = await create(model="auto", max_tokens=4, **body)
            once = client.with_options(max_retries=0).chat.completions
            with pytest.raises(RateLimitError) as caught:
                await once.create(model=SMALL, max_tokens=4, **body)
            await long.close()
            return answer.headers, caught.value

        headers, shed = asyncio.run(run())
        assert headers["x-routed-model"] == LARGE
        assert headers["x-routed-fallback"] == f"{SMALL}: saturated"
        assert int(shed.response.headers["retry-after"]) >= 1


class TestGuardrail:
    def test_a_blocked_prompt_is_a_400_that_names_the_type(self, pipeline: Endpoint) -> None:
        with pytest.raises(BadRequestError) as caught:
            raw(pipeline, f"Charge {CARD} please")
        assert caught.value.code == "content_blocked"
        assert "CREDIT_CARD" in str(caught.value)
        assert "4111" not in str(caught.value)

    def test_redacted_text_never_reaches_the_model(self, pipeline: Endpoint) -> None:
        plain = raw(pipeline, f"<EMAIL_ADDRESS> {QUESTION}", SMALL).parse()
        redacted = raw(pipeline, f"{EMAIL} {QUESTION}", SMALL)
        findings = redacted.headers["x-guardrail"].split(", ")
        assert "EMAIL_ADDRESS;action=redact;count=1" in findings
        assert redacted.parse().usage.prompt_tokens == plain.usage.prompt_tokens

    def test_streamed_and_whole_answers_are_checked(
        self, pipeline: Endpoint, endpoint: Endpoint
    ) -> None:
        truth = streamed_text(endpoint, QUESTION, endpoint.model_id)
        assert "attention keys" in truth, "words of the glossary that take several tokens"
        expected = truth.replace("attention keys", "<CACHE_WORD>")
        assert streamed_text(pipeline, QUESTION, LARGE) == expected
        answer = raw(pipeline, QUESTION, LARGE, max_tokens=60)
        assert answer.parse().choices[0].message.content == expected
        assert answer.headers["x-guardrail"] == "CACHE_WORD;action=redact;count=1"

    def test_the_stream_arrives_in_parts(self, pipeline: Endpoint) -> None:
        async def run() -> wb.client.RequestRecord:
            return await wb.client.stream_chat(
                pipeline.async_client,
                model=LARGE,
                messages=QUESTION,
                max_tokens=450,  # A slow reader gets many tokens in one event.
                ignore_eos=True,
                clock=wb.client.start_clock(),
            )

        record = asyncio.run(run())
        assert record.status == "ok"
        assert record.output_tokens == 450
        assert len(record.token_times_s) >= 5
        assert record.first_token_s is not None
        assert record.end_s is not None
        assert record.first_token_s < record.end_s

    def test_requests_that_bypass_it_are_refused(self, pipeline: Endpoint) -> None:
        for options in ({"logprobs": True}, {"extra_body": {"return_token_ids": True}}):
            with pytest.raises(BadRequestError, match="guardrail"):
                raw(pipeline, QUESTION, **options)
        with pytest.raises(BadRequestError, match="token ids"):
            pipeline.client.completions.create(model=SMALL, prompt=[5, 6, 7], max_tokens=1)
        root = pipeline.base_url.removesuffix("/v1")
        headers = {"Authorization": f"Bearer {pipeline.api_key.get_secret_value()}"}
        ids = [
            httpx.post(
                f"{root}/tokenize",
                json={"model": SMALL, "prompt": text},
                headers=headers,
                timeout=60,
            )
            for text in (EMAIL, "<EMAIL_ADDRESS>")
        ]
        assert ids[0].json()["tokens"] == ids[1].json()["tokens"], "read only after redaction"


class TestStages:
    def test_a_stream_ends_with_all_stages(self, pipeline: Endpoint) -> None:
        async def run() -> wb.client.RequestRecord:
            return await wb.client.stream_chat(
                pipeline.async_client,
                model="auto",
                messages=QUESTION,
                max_tokens=24,
                clock=wb.client.start_clock(),
            )

        record = asyncio.run(run())
        assert record.model == SMALL
        assert record.stages is not None
        assert list(record.stages) == list(STAGES)
        assert all(ms is not None and ms >= 0 for ms in record.stages.values())
        assert record.end_s is not None
        assert record.sent_s is not None
        total_ms = sum(ms or 0 for name, ms in record.stages.items() if name != "guardrail_out")
        assert total_ms <= (record.end_s - record.sent_s) * 1e3, (
            "the stages take no longer than the request"
        )

    def test_a_whole_answer_has_all_stages_in_its_header(self, pipeline: Endpoint) -> None:
        timing = raw(pipeline, QUESTION, SMALL).headers["server-timing"]
        assert [part.split(";")[0] for part in timing.split(", ")] == list(STAGES)

    def test_usage_is_sent_only_if_requested(self, pipeline: Endpoint) -> None:
        create: Any = pipeline.client.chat.completions.create
        for options, expected in (({}, 0), ({"stream_options": {"include_usage": True}}, 1)):
            stream = create(
                model=SMALL,
                messages=[{"role": "user", "content": QUESTION}],
                max_tokens=8,
                stream=True,
                **options,
            )
            assert sum(chunk.usage is not None for chunk in stream) == expected


def test_new_rules_reach_running_replicas(pipeline: Endpoint) -> None:
    before = replicas(pipeline)
    blocking = wb.guardrail.PresidioGuardrail(action="block", recognizers=BADGE)
    changed = SPEC.model_copy(
        update={
            "guardrail": blocking,
            "router": wb.router.RouterSpec(rules=(wb.router.LengthRule(model=LARGE, max_chars=5),)),
        }
    )
    wb.deploy(changed, progress=lambda line: None)
    try:
        with pytest.raises(BadRequestError, match="EMAIL_ADDRESS"):
            raw(pipeline, f"{EMAIL} {QUESTION}")
        with pytest.raises(APIError, match="CACHE_WORD"):
            streamed_text(pipeline, QUESTION, LARGE)
        assert raw(pipeline, "hi").headers["x-routed-reason"] == "rule 1: 2 characters"
        assert replicas(pipeline) == before
    finally:
        wb.deploy(SPEC, progress=lambda line: None)


def replicas(endpoint: Endpoint) -> set[str]:
    from serving.deploy.status import details

    deployments = details()["applications"][endpoint.spec.name]["deployments"]
    return {
        replica["replica_id"]
        for deployment in deployments.values()
        for replica in deployment["replicas"]
    }


def test_another_model_answers_for_a_killed_one(pipeline: Endpoint) -> None:
    """Requests for auto continue at the other model after the small model's replica is killed."""
    import ray

    from serving.deploy.status import details

    replica = details()["applications"]["pipeline"]["deployments"][SMALL]["replicas"][0]
    ray.kill(ray.get_actor(replica["actor_name"], namespace="serve"))
    answer = raw(pipeline, QUESTION)
    assert answer.headers["x-routed-model"] == LARGE
    assert answer.headers["x-routed-fallback"].startswith(f"{SMALL}: ")


@pytest.mark.slow
def test_a_guard_model_in_its_own_deployment(deployed: Deployed) -> None:
    """Use the embedded model as a classifier: questions that it can answer count as unsafe."""
    answer_format = wb.guardrail.GuardAnswerFormat(
        safe="small demonstration model", unsafe="^The KV cache", categories="attention keys"
    )
    guard = wb.guardrail.GuardModel(
        model=wb.ModelSpec(source="nano", id="guard", max_model_len=512),
        verdict=answer_format,
        template="<|user|>{text}<|end|>\n<|assistant|>",
        max_tokens=24,
    )
    spec = wb.PipelineSpec(
        name="guarded",
        route_prefix="/guarded",
        port=0,
        models=(wb.ModelSpec(source="nano", id=SMALL, max_model_len=512),),
        guardrail=guard,
    )
    with wb.deploy(spec, progress=lambda line: None) as guarded:
        assert set(guarded.status().deployments) == {SMALL, "guard", "ingress"}
        with pytest.raises(BadRequestError, match="prompt: it contains attention keys"):
            raw(guarded, QUESTION, SMALL)
        answer = raw(guarded, "What is the capital of Norway?", SMALL).parse()
        assert "small demonstration model" in answer.choices[0].message.content
        with pytest.raises(NotFoundError):
            raw(guarded, "What is the capital of Norway?", "guard")


def test_no_log_contains_a_text(pipeline: Endpoint) -> None:
    with pytest.raises(BadRequestError):
        raw(pipeline, f"{SECRET} {CARD}")
    raw(pipeline, f"{SECRET} {EMAIL}", LARGE)
    logs = [Path(root) / name for root, _, names in os.walk(session_logs()) for name in names]
    assert logs
    for log in logs:
        content = log.read_bytes()
        for text in (SECRET, EMAIL, CARD):
            assert text.encode() not in content, log.name
