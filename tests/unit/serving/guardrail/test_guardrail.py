"""What a guardrail finds, what it passes on, and when. Ground truth: handmade, labelled texts."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai._streaming import SSEDecoder
from support.scripted_server import Script, ScriptedServer

from serving.errors import SpecError
from serving.gateway.stages import StageTimings
from serving.guardrail import presidio
from serving.guardrail.findings import (
    Finding,
    FindingCounts,
    blocked_entities,
    merge_overlaps,
    redacted,
)
from serving.guardrail.guard import BlockedError, Guard, MicroBatcher, RefusedError
from serving.guardrail.guard_model import GuardModelClient, endpoint_client, violated_categories
from serving.guardrail.holdback import MAX_WORD_CHARS, HoldbackBuffer
from serving.guardrail.presidio import Detector
from serving.guardrail.stream import GuardedStream
from serving.guardrail.texts import RequestTexts
from serving.spec.guardrail import (
    EntityRule,
    GuardAnswerFormat,
    GuardEndpoint,
    GuardModel,
    PresidioGuardrail,
    Side,
)
from serving.spec.model import ModelSpec

EMAIL = "jane.roe@example.com"
BADGE = """
recognizers:
  - name: Badge numbers
    supported_entity: BADGE
    patterns:
      - {name: badge, regex: 'B-\\d{5}', score: 0.9}
"""


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector(PresidioGuardrail(recognizers=BADGE))


def matches(detector: Detector, text: str) -> dict[str, str]:
    return {finding.entity: text[finding.start : finding.end] for finding in detector.find(text)}


class TestPresidio:
    @pytest.mark.parametrize(
        ("text", "entity", "match"),
        [
            (f"Write to {EMAIL} today", "EMAIL_ADDRESS", EMAIL),
            ("Call me on +1 212 555 0199.", "PHONE_NUMBER", "+1 212 555 0199"),
            ("My card is 4111 1111 1111 1111", "CREDIT_CARD", "4111 1111 1111 1111"),
            ("IBAN DE89370400440532013000 please", "IBAN_CODE", "DE89370400440532013000"),
            ("The host is 192.0.2.17", "IP_ADDRESS", "192.0.2.17"),
            ("He wears B-12345 on his coat", "BADGE", "B-12345"),
        ],
    )
    def test_patterns_are_found_without_a_model(
        self, detector: Detector, text: str, entity: str, match: str
    ) -> None:
        assert matches(detector, text).items() >= {entity: match}.items()

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "What is a tensor of rank 4 with shape 12 by 128?",
            "The card 4111 1111 1111 1112 has a wrong check digit",
            "Version 1.2.3 came in 2024",
            "see user@localhost",
        ],
    )
    def test_other_texts_have_no_findings(self, detector: Detector, text: str) -> None:
        assert matches(detector, text) == {}

    def test_rules_apply_by_type_and_score(self) -> None:
        rules = (
            EntityRule(entity="PHONE_NUMBER", min_score=0.9),
            EntityRule(entity="IP_ADDRESS", action="allow"),
            EntityRule(entity="CREDIT_CARD", action="block"),
        )
        text = f"{EMAIL}, +1 212 555 0199, 192.0.2.17, 4111 1111 1111 1111"
        findings = Detector(PresidioGuardrail(rules=rules)).find(text)
        actions = {finding.entity: finding.action for finding in findings}
        assert actions["EMAIL_ADDRESS"] == "redact"
        assert actions["CREDIT_CARD"] == "block"
        assert "IP_ADDRESS" not in actions, "allowed"

    def test_only_the_named_types_are_searched(self) -> None:
        only = Detector(PresidioGuardrail(entities=("URL",)))
        assert matches(only, f"https://example.com/a and {EMAIL}").keys() == {"URL"}

    @pytest.mark.slow  # creates an analyzer per language
    def test_other_languages(self) -> None:
        both = Detector(PresidioGuardrail(languages=("de", "fr")))
        assert matches(both, f"Schreib an {EMAIL}, bitte") == {"EMAIL_ADDRESS": EMAIL}

    def test_a_model_finds_names_and_places(self, tmp_path: Path) -> None:
        import spacy

        nlp = spacy.blank("en")
        ruler = nlp.add_pipe("entity_ruler")
        ruler.add_patterns(
            [{"label": "PERSON", "pattern": "Jane Roe"}, {"label": "GPE", "pattern": "Utopia"}]
        )
        nlp.to_disk(tmp_path / "names")
        text = "Jane Roe lives in Utopia."
        assert matches(Detector(PresidioGuardrail()), text) == {}
        spec = PresidioGuardrail(nlp_models={"en": str(tmp_path / "names")})
        assert matches(Detector(spec), text) == {"PERSON": "Jane Roe", "LOCATION": "Utopia"}

    def test_a_model_that_spacy_cannot_load_is_named(self) -> None:
        with pytest.raises(SpecError, match=r"nlp_models\['en'\] = 'no_such_model'"):
            Detector(PresidioGuardrail(nlp_models={"en": "no_such_model"}))

    @pytest.mark.parametrize(
        "entry",
        [
            "{name: x}",
            "{name: x, supported_entity: X}",
            "{name: x, supported_entity: X, patterns: [{name: p, regex: '(', score: 1}]}",
            "{name: x, supported_entity: X, patterns: [{name: p}]}",
            "just text",
        ],
    )
    def test_invalid_recognizers_are_refused(self, entry: str) -> None:
        with pytest.raises(SpecError, match=r"guardrail.recognizers: "):
            presidio.check_recognizers(PresidioGuardrail(recognizers=f"recognizers: [{entry}]"))

    @pytest.mark.slow  # starts a process that imports Presidio again
    def test_the_network_is_not_used(self) -> None:
        code = (
            "import socket\n"
            "def refuse(*a, **k): raise SystemExit('the network was used')\n"
            "socket.getaddrinfo = socket.socket.connect = socket.create_connection = refuse\n"
            "from serving.spec.guardrail import PresidioGuardrail\n"
            "from serving.guardrail.presidio import Detector\n"
            f"print(len(Detector(PresidioGuardrail()).find('{EMAIL} http://example.com')))\n"
        )
        process = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env=os.environ | {"HOME": "/nonexistent"},
        )
        assert process.stdout.strip() == "1", process.stderr[-2000:]


def finding(start: int, end: int, entity: str = "A", score: float = 0.5, action: Any = "redact"):  # type: ignore[no-untyped-def]
    return Finding(start, end, entity, score, action)


class TestFindings:
    def test_overlapping_findings_are_merged(self) -> None:
        merged = merge_overlaps(
            [finding(5, 9, "B", 0.9), finding(0, 6, "A", 0.4), finding(9, 10, "C")]
        )
        assert merged == [finding(0, 9, "B", 0.9), finding(9, 10, "C")]
        assert redacted("0123456789x", merged) == "<B><C>x"

    def test_a_merged_finding_has_the_type_of_the_severest_action(self) -> None:
        merged = merge_overlaps([finding(0, 9, "A", 1.0), finding(2, 3, "B", 0.1, "block")])
        assert merged == [finding(0, 9, "B", 0.1, "block")]
        assert blocked_entities(merged) == ["B"]

    def test_only_findings_to_redact_are_redacted(self) -> None:
        text = "ab cd ef"
        assert redacted(text, [finding(0, 2, action="annotate"), finding(3, 5)]) == "ab <A> ef"

    def test_counts_name_types_and_never_texts(self) -> None:
        counts = FindingCounts()
        counts.record([finding(0, 1, "B"), finding(0, 1, "B"), finding(0, 1, "A", 1, "annotate")])
        assert str(counts) == "A;action=annotate;count=1, B;action=redact;count=2"


def find_email(text: str) -> list[Finding]:
    """Find the one e-mail address, wherever it is."""
    start = text.find(EMAIL)
    return [] if start < 0 else [Finding(start, start + len(EMAIL), "EMAIL_ADDRESS", 1.0, "redact")]


def streamed(pieces: Sequence[str], hold: int, step: int) -> tuple[str, int]:
    """Return what a buffer releases if checked whenever a check is due, and the most it held."""
    buffer, out, peak = HoldbackBuffer(hold, step), "", 0
    for piece in pieces:
        buffer.push(piece)
        if buffer.due():
            out += buffer.release(find_email(buffer.text()), last=False)[0]
        peak = max(peak, buffer.held)
    return out + buffer.release(find_email(buffer.text()), last=True)[0], peak


class TestHoldbackBuffer:
    @settings(max_examples=150)
    @given(
        before=st.text("ab \n.", max_size=300),
        after=st.text("cd \n.", max_size=300),
        cuts=st.lists(st.integers(0, 620), max_size=40),
        hold=st.integers(16, 64),
        step=st.integers(1, 100),
    )
    def test_an_address_is_found_wherever_it_is_split(
        self, before: str, after: str, cuts: list[int], hold: int, step: int
    ) -> None:
        text = f"{before} {EMAIL} {after}"
        bounds = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
        pieces = [text[a:b] for a, b in pairwise(bounds)]
        out, _ = streamed(pieces, hold, step)
        assert out == f"{before} <EMAIL_ADDRESS> {after}"

    def test_the_buffer_does_not_wait_for_the_whole_answer(self) -> None:
        words = "one two three four five six seven eight nine ten " * 20
        buffer, out = HoldbackBuffer(48, 96), ""
        for letter in words:
            buffer.push(letter)
            if buffer.due():
                out += buffer.release([], last=False)[0]
            assert buffer.held <= 48 + 96 + len("seven")
        assert len(out) > len(words) - 48 - 96 - len("seven")
        assert words.startswith(out)

    def test_an_endless_word_is_held_up_to_the_longest_word(self) -> None:
        out, peak = streamed(["x"] * 5000, 48, 96)
        assert out == "x" * 5000
        assert peak <= 48 + 96 + MAX_WORD_CHARS

    def test_released_text_precedes_the_next_checked_text(self) -> None:
        buffer = HoldbackBuffer(16, 1)
        buffer.push("my badge number is B-12345 and so on and on")
        buffer.release([], last=False)
        assert buffer.text().startswith("my badge number is")

    def test_a_finding_is_returned_once(self) -> None:
        buffer, findings = HoldbackBuffer(16, 1), []
        for piece in [f"a {EMAIL}", " and more", " and more", " and more of it"]:
            buffer.push(piece)
            findings += buffer.release(find_email(buffer.text()), last=False)[1]
        assert [finding.entity for finding in findings] == ["EMAIL_ADDRESS"]


async def finds_emails(side: Side, texts: Sequence[str]) -> list[list[Finding]]:
    return [find_email(text) for text in texts]


async def blocks_emails(side: Side, texts: Sequence[str]) -> list[list[Finding]]:
    return [[finding._replace(action="block") for finding in find_email(text)] for text in texts]


GUARD = Guard(PresidioGuardrail(hold_back_chars=24, step_chars=8), finds_emails)


def chunk(delta: dict[str, Any], finish: str | None = None, index: int = 0) -> str:
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return "data: " + json.dumps({"id": "c", "model": "m", "choices": [choice]}) + "\n\n"


def text_chunk(text: str, finish: str | None = None) -> str:
    choice = {"index": 0, "text": text, "finish_reason": finish}
    return "data: " + json.dumps({"id": "c", "model": "m", "choices": [choice]}) + "\n\n"


USAGE = 'data: {"choices":[],"usage":{"completion_tokens":3}}\n\n'


def rewritten(
    *packets: str, guard: Guard = GUARD, counts: FindingCounts | None = None
) -> list[Any]:
    """Return the events that OpenAI's own decoder reads."""

    async def source() -> AsyncIterator[str]:
        for packet in packets:
            yield packet

    async def run() -> list[str]:
        stream = GuardedStream(
            guard, StageTimings(), counts if counts is not None else FindingCounts()
        )
        return [packet async for packet in stream.rewrite(source())]

    raw = "".join(asyncio.run(run())).encode()
    return [event.json() for event in SSEDecoder().iter_bytes(iter([raw]))]


def content(events: Sequence[Any], name: str = "content", index: int = 0) -> str:
    choices = [c for e in events for c in e["choices"] if c["index"] == index]
    return "".join(c["delta"].get(name) or "" for c in choices)


class TestStreams:
    def test_an_address_split_over_three_chunks_is_found(self) -> None:
        counts = FindingCounts()
        events = rewritten(
            chunk({"role": "assistant", "content": ""}),
            chunk({"content": "Write to jane.r"}),
            chunk({"content": "oe@exam"}),
            chunk({"content": "ple.com for more about it, whenever you like."}),
            chunk({}, "stop"),
            USAGE,
            counts=counts,
        )
        assert content(events) == "Write to <EMAIL_ADDRESS> for more about it, whenever you like."
        assert "jane" not in json.dumps(events)
        assert events[0]["choices"][0]["delta"]["role"] == "assistant"
        assert events[-2]["choices"][0]["finish_reason"] == "stop"
        assert events[-1]["usage"] == {"completion_tokens": 3}
        assert counts == {("EMAIL_ADDRESS", "redact"): 1}

    def test_text_precedes_the_finish_reason_of_its_choice(self) -> None:
        events = rewritten(chunk({"content": "hi"}), chunk({"content": "!"}, "stop"), USAGE)
        assert [e["choices"][0]["finish_reason"] for e in events[:-1]] == [None, "stop"]
        assert content(events) == "hi!"

    def test_choices_and_texts_are_kept_apart(self) -> None:
        events = rewritten(
            chunk({"content": "a jane.roe@"}),
            chunk({"content": "b jane.roe@"}, index=1),
            chunk({"content": "example.com"}, "stop"),
            chunk({"content": "elsewhere", "reasoning": EMAIL}, "stop", index=1),
        )
        assert content(events) == "a <EMAIL_ADDRESS>"
        assert content(events, index=1) == "b jane.roe@elsewhere"
        assert content(events, "reasoning", index=1) == "<EMAIL_ADDRESS>"

    def test_completions(self) -> None:
        events = rewritten(text_chunk("see jane.roe@"), text_chunk("example.com", "length"))
        assert "".join(e["choices"][0]["text"] for e in events) == "see <EMAIL_ADDRESS>"
        assert events[-1]["choices"][0]["finish_reason"] == "length"

    def test_tool_call_arguments(self) -> None:
        call = {"index": 0, "id": "t", "type": "function", "function": {"name": "f"}}
        more = [
            {"index": 0, "function": {"arguments": part}}
            for part in ('{"to": "jane.roe', '@example.com"}')
        ]
        events = rewritten(
            chunk({"role": "assistant", "tool_calls": [call]}),
            chunk({"tool_calls": [more[0]]}),
            chunk({"tool_calls": [more[1]]}),
            chunk({}, "tool_calls"),
        )
        calls = [c for e in events for c in e["choices"][0]["delta"].get("tool_calls", ())]
        assert calls[0]["function"]["name"] == "f"
        arguments = "".join(c["function"].get("arguments") or "" for c in calls)
        assert arguments == '{"to": "<EMAIL_ADDRESS>"}'

    def test_blocking_ends_the_stream_and_names_only_the_type(self) -> None:
        guard = Guard(GUARD.spec, blocks_emails)
        with pytest.raises(BlockedError, match="answer: it contains EMAIL_ADDRESS") as caught:
            rewritten(chunk({"content": f"Write to {EMAIL}"}), chunk({}, "stop"), guard=guard)
        assert EMAIL not in str(caught.value)
        assert caught.value.code == "content_blocked"

    def test_engine_errors_pass(self) -> None:
        error = 'data: {"error":{"message":"x","type":"y","code":500}}\n\n'
        assert rewritten(error) == [{"error": {"message": "x", "type": "y", "code": 500}}]


def chat(*contents: Any, **fields: Any) -> Any:
    messages = [{"role": "user", "content": content} for content in contents]
    return SimpleNamespace(messages=messages, **fields)


class TestRequests:
    def test_every_text_of_a_chat_is_checked(self) -> None:
        body = chat(EMAIL, iter([{"type": "text", "text": EMAIL}, {"type": "image_url"}]), None)
        call = {"function": {"name": "f", "arguments": f'"{EMAIL}"'}}
        body.messages.append({"role": "assistant", "tool_calls": iter([call])})
        asyncio.run(GUARD.check_prompt(RequestTexts(body), FindingCounts()))
        messages = json.dumps(body.messages)
        assert EMAIL not in messages
        assert messages.count("<EMAIL_ADDRESS>") == 3

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
                        RequestTexts(chat("poison")), FindingCounts()
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
            await asyncio.sleep(5)
            return "safe"

        spec = GuardModel(model=ModelSpec(id="g"), template="{role} wrote: {text}", timeout_s=0.01)
        findings = asyncio.run(GuardModelClient(spec, ask)("prompt", ["a {role}"]))
        assert asked == [{"prompt": "user wrote: a {role}", "max_tokens": 16, "temperature": 0.0}]
        assert [finding.entity for finding in findings[0]] == ["UNCLEAR"]
