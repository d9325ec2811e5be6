"""Guard models: what they are asked, and how their answers are read."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from support.email_guard import CHAT, chat
from support.scripted_server import Script, ScriptedServer

from serving.guardrail.findings import Finding, FindingCounts
from serving.guardrail.guard import BlockedError, Guard
from serving.guardrail.guard_model import GuardModelClient, endpoint_client, violated_categories
from serving.guardrail.texts import RequestTexts
from serving.spec.guardrail import GuardAnswerFormat, GuardEndpoint, GuardModel
from serving.spec.model import ModelSpec


class TestGuardModels:
    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            ("safe", []),
            ("\n\nsafe", []),
            ("unsafe\nS1", ["S1"]),
            ("\n\nunsafe\nS7,S1", ["S1", "S7"]),
            ("unsafe", ["UNSAFE"]),
            ("I cannot say", ["UNCLEAR"]),
            ("", ["UNCLEAR"]),
        ],
    )
    def test_llama_guards_answers(self, answer: str, expected: list[str]) -> None:
        assert violated_categories(GuardAnswerFormat(), answer) == expected

    def test_another_classifiers_answers(self) -> None:
        answer_format = GuardAnswerFormat(
            safe="^No", unsafe="^Yes", categories=r"\[(\w+)\]", unclear="allow"
        )
        assert violated_categories(answer_format, "Yes, this is [spam]") == ["spam"]
        assert (
            violated_categories(answer_format, "No.")
            == violated_categories(answer_format, "Hm.")
            == []
        )

    def test_a_guard_model_at_an_endpoint(self) -> None:
        def answer(body: dict[str, Any], number: int) -> Script:
            content = "unsafe\nS2" if "poison" in body["messages"][0]["content"] else "safe"
            choice = {"index": 0, "message": {"role": "assistant", "content": content}}
            reply = {"id": "x", "object": "chat.completion", "created": 1, "model": "g"}
            return Script(status=201, body=json.dumps(reply | {"choices": [choice]}).encode())

        async def run() -> tuple[Any, list[Any]]:
            async with ScriptedServer(answer) as server:
                spec = GuardEndpoint(base_url=server.base_url, model_id="g")
                client = GuardModelClient(spec, endpoint_client(spec))
                findings = await client("answer", ["tea", "a poison", " "])
                with pytest.raises(BlockedError, match="prompt: it contains S2"):
                    await Guard(spec, client).check_prompt(
                        RequestTexts(CHAT, chat("poison")), FindingCounts()
                    )
                return findings, [exchange.body for exchange in server.log]

        findings, asked = asyncio.run(run())
        assert findings == [[], [Finding(0, 8, "S2", 1.0, "block")], []]
        assert [body["messages"][0]["role"] for body in asked] == ["assistant", "assistant", "user"]
        assert {body["model"] for body in asked} == {"g"}

    def test_a_template_becomes_a_prompt_and_a_timeout_is_unclear(self) -> None:
        asked = []

        async def ask(fields: dict[str, Any]) -> str:
            asked.append(fields)
            await asyncio.sleep(60)
            return "safe"

        spec = GuardModel(model=ModelSpec(id="g"), template="{role} wrote: {text}", timeout_s=0.01)
        findings = asyncio.run(GuardModelClient(spec, ask)("prompt", ["a {role}"]))
        assert asked == [{"prompt": "user wrote: a {role}", "max_tokens": 16, "temperature": 0.0}]
        assert [finding.entity for finding in findings[0]] == ["UNCLEAR"]
