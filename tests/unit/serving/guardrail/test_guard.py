"""The guardrail on whole requests and answers, and the batches of its texts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from support.email_guard import EMAIL, GUARD, chat, find_email, finds_emails

from serving.guardrail.findings import Finding, FindingCounts
from serving.guardrail.guard import Guard, MicroBatcher, RefusedError
from serving.guardrail.texts import RequestTexts
from serving.spec.guardrail import PresidioGuardrail, Side


class TestRequests:
    def test_every_text_of_a_chat_is_checked(self) -> None:
        body = chat(EMAIL, iter([{"type": "text", "text": EMAIL}, {"type": "image_url"}]), None)
        call = {"function": {"name": "f", "arguments": f'"{EMAIL}"'}}
        body.messages.append({"role": "assistant", "tool_calls": iter([call])})
        asyncio.run(GUARD.check_prompt(RequestTexts(body), FindingCounts()))
        messages = json.dumps(body.messages)
        assert EMAIL not in messages
        assert messages.count("<EMAIL_ADDRESS>") == 3

    def test_texts_extracted_once_are_the_redacted_ones(self) -> None:
        body = chat(EMAIL, "a question")
        texts = RequestTexts(body)
        asyncio.run(GUARD.check_prompt(texts, FindingCounts()))
        body.messages[1]["content"] = "not read again"
        assert [slot.text for slot in texts.slots] == ["<EMAIL_ADDRESS>", "a question"]

    @pytest.mark.parametrize("prompt", [EMAIL, [EMAIL, f"x {EMAIL}"]])
    def test_prompts_of_completions(self, prompt: Any) -> None:
        body = SimpleNamespace(prompt=prompt)
        counts = FindingCounts()
        asyncio.run(GUARD.check_prompt(RequestTexts(body), counts))
        assert EMAIL not in str(body.prompt)
        assert counts.total() == (1 if isinstance(prompt, str) else 2)

    @pytest.mark.parametrize(
        "body",
        [
            SimpleNamespace(prompt=[1, 2]),
            SimpleNamespace(prompt=[[1, 2]]),
            SimpleNamespace(prompt=None, prompt_embeds=b"x"),
            chat("x", logprobs=True),
            SimpleNamespace(prompt="x", logprobs=0),
            SimpleNamespace(prompt="x", echo=True),
            chat("x", return_token_ids=True),
        ],
    )
    def test_requests_that_bypass_the_guardrail_are_refused(self, body: Any) -> None:
        with pytest.raises(RefusedError) as caught:
            asyncio.run(GUARD.check_prompt(RequestTexts(body), FindingCounts()))
        assert (caught.value.code, caught.value.status) == ("not_with_guardrail", 400)

    def test_each_side_can_be_checked_alone(self) -> None:
        prompts = Guard(PresidioGuardrail(sides=("prompt",)), finds_emails)
        answers = Guard(PresidioGuardrail(sides=("answer",)), finds_emails)
        body = chat(EMAIL, logprobs=True)
        asyncio.run(prompts.check_prompt(RequestTexts(body), FindingCounts()))
        assert body.messages[0]["content"] == "<EMAIL_ADDRESS>"
        asyncio.run(answers.check_prompt(RequestTexts(body := chat(EMAIL)), FindingCounts()))
        assert body.messages[0]["content"] == EMAIL
        assert not RequestTexts(chat("x")).has_token_ids
        assert RequestTexts(chat("x", logprobs=None, echo=False)).answer_leaking_arguments == []
        assert [slot.text for slot in RequestTexts(chat("a", "b")).slots] == ["a", "b"]

    def test_whole_answers(self) -> None:
        call = SimpleNamespace(function=SimpleNamespace(arguments=EMAIL))
        message = SimpleNamespace(content=EMAIL, reasoning=None, tool_calls=[call])
        answer = SimpleNamespace(choices=[SimpleNamespace(message=message)])
        asyncio.run(GUARD.check_answer(answer, FindingCounts()))
        assert (message.content, call.function.arguments) == ("<EMAIL_ADDRESS>",) * 2

    def test_nothing_passes_if_the_guardrail_fails(self) -> None:
        async def broken(side: Side, texts: Sequence[str]) -> list[list[Finding]]:
            raise ConnectionError(f"could not send {texts[0]}")

        with pytest.raises(RefusedError, match="ConnectionError") as caught:
            asyncio.run(
                Guard(GUARD.spec, broken).check_prompt(RequestTexts(chat(EMAIL)), FindingCounts())
            )
        assert caught.value.status == 503
        assert EMAIL not in str(caught.value)


class TestMicroBatcher:
    def test_texts_that_arrive_during_a_call_share_the_next_one(self) -> None:
        calls: list[list[str]] = []

        async def call(texts: list[str]) -> list[list[Finding]]:
            calls.append(texts)
            await asyncio.sleep(0.01)
            return [find_email(text) for text in texts]

        async def run() -> list[list[list[Finding]]]:
            batcher = MicroBatcher(call, limit=1)
            results = [batcher("prompt", texts) for texts in (["a"], [EMAIL], ["b", EMAIL])]
            return await asyncio.gather(*results)

        findings = asyncio.run(run())
        assert calls == [["a"], [EMAIL, "b", EMAIL]]
        assert [[len(of_text) for of_text in of_request] for of_request in findings] == [
            [0],
            [1],
            [0, 1],
        ]

    def test_a_failed_call_fails_only_its_own_texts(self) -> None:
        answers = iter([ConnectionError("gone"), None])

        async def call(texts: list[str]) -> list[list[Finding]]:
            await asyncio.sleep(0)
            if error := next(answers):
                raise error
            return [[] for _ in texts]

        async def run() -> list[Any]:
            batcher = MicroBatcher(call, limit=1)
            results = [batcher("prompt", [text]) for text in "ab"]
            return await asyncio.gather(*results, return_exceptions=True)

        first, second = asyncio.run(run())
        assert isinstance(first, ConnectionError)
        assert second == [[]]
