"""The guardrail on whole requests and answers, and the batches of its texts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from support.email_guard import CHAT, EMAIL, GUARD, chat, find_email, finds_emails

from serving.guardrail.findings import Finding, FindingCounts
from serving.guardrail.guard import Guard, MicroBatcher, RefusedError
from serving.guardrail.texts import RequestTexts
from serving.spec.guardrail import PresidioGuardrail, Side


def checked(body: dict[str, Any], path: str = CHAT, guard: Guard = GUARD) -> FindingCounts:
    """Check a request in place, and return the findings."""
    counts = FindingCounts()
    asyncio.run(guard.check_prompt(RequestTexts(path, body), counts))
    return counts


def refusal(body: dict[str, Any], path: str = CHAT, guard: Guard = GUARD) -> RefusedError:
    """Return why a request is refused."""
    with pytest.raises(RefusedError) as caught:
        checked(body, path, guard)
    assert EMAIL not in str(caught.value)
    return caught.value


class TestRequests:
    def test_every_text_of_a_chat_is_checked(self) -> None:
        call = {"type": "function", "function": {"name": "f", "arguments": f'"{EMAIL}"'}}
        body = chat(EMAIL, [{"type": "text", "text": EMAIL}], None)
        body["messages"].append({"role": "assistant", "tool_calls": [call]})
        checked(body)
        messages = json.dumps(body["messages"])
        assert EMAIL not in messages
        assert messages.count("<EMAIL_ADDRESS>") == 3

    def test_texts_extracted_once_are_the_redacted_ones(self) -> None:
        body = chat(EMAIL, "a question")
        texts = RequestTexts(CHAT, body)
        asyncio.run(GUARD.check_prompt(texts, FindingCounts()))
        body["messages"][1]["content"] = "not read again"
        assert [slot.text for slot in texts.conversation] == ["<EMAIL_ADDRESS>", "a question"]

    @pytest.mark.parametrize("prompt", [EMAIL, [EMAIL, f"x {EMAIL}"]])
    def test_prompts_of_completions(self, prompt: Any) -> None:
        body = {"prompt": prompt}
        counts = checked(body, "/v1/completions")
        assert EMAIL not in str(body)
        assert counts.total() == (1 if isinstance(prompt, str) else 2)

    @pytest.mark.parametrize(
        "body",
        [
            {"prompt": [1, 2]},
            {"prompt": [[1, 2]]},
            {"prompt": None, "prompt_embeds": "x"},
            chat("x", logprobs=True),
            {"prompt": "x", "logprobs": 0},
            {"prompt": "x", "echo": True},
            chat("x", return_token_ids=True),
        ],
    )
    def test_requests_that_bypass_the_guardrail_are_refused(self, body: Any) -> None:
        error = refusal(body)
        assert (error.code, error.status) == ("not_with_guardrail", 400)

    def test_each_side_can_be_checked_alone(self) -> None:
        prompts = Guard(PresidioGuardrail(sides=("prompt",)), finds_emails)
        answers = Guard(PresidioGuardrail(sides=("answer",)), finds_emails)
        body = chat(EMAIL, logprobs=True)
        checked(body, guard=prompts)
        assert body["messages"][0]["content"] == "<EMAIL_ADDRESS>"
        checked(body := chat(EMAIL), guard=answers)
        assert body["messages"][0]["content"] == EMAIL
        assert not RequestTexts(CHAT, chat("x")).has_token_ids
        harmless = chat("x", logprobs=None, echo=False)
        assert RequestTexts(CHAT, harmless).answer_leaking_arguments == []
        assert [slot.text for slot in RequestTexts(CHAT, chat("a", "b")).slots] == ["a", "b"]

    def test_whole_answers(self) -> None:
        call = {"function": {"name": "f", "arguments": json.dumps({"to": EMAIL})}}
        message = {"content": EMAIL, "reasoning": None, "tool_calls": [call]}
        asyncio.run(GUARD.check_answer(CHAT, {"choices": [{"message": message}]}, FindingCounts()))
        assert message["content"] == "<EMAIL_ADDRESS>"
        assert json.loads(call["function"]["arguments"]) == {"to": "<EMAIL_ADDRESS>"}

    def test_nothing_passes_if_the_guardrail_fails(self) -> None:
        async def broken(side: Side, texts: Sequence[str]) -> list[list[Finding]]:
            raise ConnectionError(f"could not send {texts[0]}")

        error = refusal(chat(EMAIL), guard=Guard(GUARD.spec, broken))
        assert "ConnectionError" in str(error)
        assert error.status == 503


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
