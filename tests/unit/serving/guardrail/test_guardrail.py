"""What a guardrail finds, what it lets through, and when. Truth: hand-made, labelled texts."""

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


def found(detector: Detector, text: str) -> dict[str, str]:
    return {one.entity: text[one.start : one.end] for one in detector.find(text)}


class TestPresidio:
    @pytest.mark.parametrize(
        ("text", "entity", "what"),
        [
            (f"Write to {EMAIL} today", "EMAIL_ADDRESS", EMAIL),
            ("Call me on +1 212 555 0199.", "PHONE_NUMBER", "+1 212 555 0199"),
            ("My card is 4111 1111 1111 1111", "CREDIT_CARD", "4111 1111 1111 1111"),
            ("IBAN DE89370400440532013000 please", "IBAN_CODE", "DE89370400440532013000"),
            ("The host is 192.0.2.17", "IP_ADDRESS", "192.0.2.17"),
            ("He wears B-12345 on his coat", "BADGE", "B-12345"),
        ],
    )
    def test_patterns_are_found_without_any_model(
        self, detector: Detector, text: str, entity: str, what: str
    ) -> None:
        assert found(detector, text).items() >= {entity: what}.items()

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
    def test_what_is_nobodys_is_left_alone(self, detector: Detector, text: str) -> None:
        assert found(detector, text) == {}

    def test_rules_go_by_type_and_score(self) -> None:
        rules = (
            EntityRule(entity="PHONE_NUMBER", min_score=0.9),
            EntityRule(entity="IP_ADDRESS", action="allow"),
            EntityRule(entity="CREDIT_CARD", action="block"),
        )
        text = f"{EMAIL}, +1 212 555 0199, 192.0.2.17, 4111 1111 1111 1111"
        every = Detector(PresidioGuardrail(rules=rules)).find(text)
        told = {one.entity: one.action for one in every}
        assert told["EMAIL_ADDRESS"] == "redact"
        assert told["CREDIT_CARD"] == "block"
        assert "IP_ADDRESS" not in told, "allowed"

    def test_only_named_types_are_looked_for(self) -> None:
        only = Detector(PresidioGuardrail(entities=("URL",)))
        assert found(only, f"https://example.com/a and {EMAIL}").keys() == {"URL"}

    @pytest.mark.slow  # each language has an analyzer of its own
    def test_other_languages(self) -> None:
        both = Detector(PresidioGuardrail(languages=("de", "fr")))
        assert found(both, f"Schreib an {EMAIL}, bitte") == {"EMAIL_ADDRESS": EMAIL}

    def test_with_a_model_names_and_places_too(self, tmp_path: Path) -> None:
        import spacy

        nlp = spacy.blank("en")
        ruler = nlp.add_pipe("entity_ruler")
        ruler.add_patterns(
            [{"label": "PERSON", "pattern": "Jane Roe"}, {"label": "GPE", "pattern": "Utopia"}]
        )
        nlp.to_disk(tmp_path / "names")
        text = "Jane Roe lives in Utopia."
        assert found(Detector(PresidioGuardrail()), text) == {}
        spec = PresidioGuardrail(nlp_models={"en": str(tmp_path / "names")})
        assert found(Detector(spec), text) == {"PERSON": "Jane Roe", "LOCATION": "Utopia"}

    def test_what_spacy_cannot_load_is_named(self) -> None:
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
    def test_a_recognizer_presidio_does_not_take_is_refused(self, entry: str) -> None:
        with pytest.raises(SpecError, match=r"guardrail.recognizers: "):
            presidio.check_recognizers(PresidioGuardrail(recognizers=f"recognizers: [{entry}]"))

    @pytest.mark.slow  # a process of its own, which imports Presidio again
    def test_nothing_is_asked_of_the_network(self) -> None:
        code = (
            "import socket\n"
            "def refuse(*a, **k): raise SystemExit('the network was asked')\n"
            "socket.getaddrinfo = socket.socket.connect = socket.create_connection = refuse\n"
            "from serving.spec.guardrail import PresidioGuardrail\n"
            "from serving.guardrail.presidio import Detector\n"
            f"print(len(Detector(PresidioGuardrail()).find('{EMAIL} http://example.com')))\n"
        )
        ran = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env=os.environ | {"HOME": "/nonexistent"},
        )
        assert ran.stdout.strip() == "1", ran.stderr[-2000:]


def finding(start: int, end: int, entity: str = "A", score: float = 0.5, action: Any = "redact"):  # type: ignore[no-untyped-def]
    return Finding(start, end, entity, score, action)


class TestFindings:
    def test_what_overlaps_becomes_one_and_nothing_of_it_stays(self) -> None:
        merged = merge_overlaps(
            [finding(5, 9, "B", 0.9), finding(0, 6, "A", 0.4), finding(9, 10, "C")]
        )
        assert merged == [finding(0, 9, "B", 0.9), finding(9, 10, "C")]
        assert redacted("0123456789x", merged) == "<B><C>x"

    def test_the_severest_action_gives_its_name(self) -> None:
        merged = merge_overlaps([finding(0, 9, "A", 1.0), finding(2, 3, "B", 0.1, "block")])
        assert merged == [finding(0, 9, "B", 0.1, "block")]
        assert blocked_entities(merged) == ["B"]

    def test_only_what_is_to_be_redacted_is(self) -> None:
        text = "ab cd ef"
        assert redacted(text, [finding(0, 2, action="annotate"), finding(3, 5)]) == "ab <A> ef"

    def test_a_tally_names_types_and_never_a_text(self) -> None:
        tally = FindingCounts()
        tally.record([finding(0, 1, "B"), finding(0, 1, "B"), finding(0, 1, "A", 1, "annotate")])
        assert str(tally) == "A;action=annotate;count=1, B;action=redact;count=2"


def look(text: str) -> list[Finding]:
    """Finds the one e-mail address, wherever it stands."""
    at = text.find(EMAIL)
    return [] if at < 0 else [Finding(at, at + len(EMAIL), "EMAIL_ADDRESS", 1.0, "redact")]


def streamed(pieces: Sequence[str], hold: int, step: int) -> tuple[str, int]:
    """What comes out of a window that looks whenever a look is due, and the most it held."""
    window, out, most = HoldbackBuffer(hold, step), "", 0
    for piece in pieces:
        window.push(piece)
        if window.due():
            out += window.release(look(window.text()), last=False)[0]
        most = max(most, window.held)
    return out + window.release(look(window.text()), last=True)[0], most


class TestTheWindow:
    @settings(max_examples=150)
    @given(
        before=st.text("ab \n.", max_size=300),
        after=st.text("cd \n.", max_size=300),
        cuts=st.lists(st.integers(0, 620), max_size=40),
        hold=st.integers(16, 64),
        step=st.integers(1, 100),
    )
    def test_an_address_is_caught_wherever_it_is_cut(
        self, before: str, after: str, cuts: list[int], hold: int, step: int
    ) -> None:
        text = f"{before} {EMAIL} {after}"
        at = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
        pieces = [text[a:b] for a, b in pairwise(at)]
        out, _ = streamed(pieces, hold, step)
        assert out == f"{before} <EMAIL_ADDRESS> {after}"

    def test_it_does_not_wait_for_the_whole_answer(self) -> None:
        words = "one two three four five six seven eight nine ten " * 20
        window, out = HoldbackBuffer(48, 96), ""
        for letter in words:
            window.push(letter)
            if window.due():
                out += window.release([], last=False)[0]
            assert window.held <= 48 + 96 + len("seven")
        assert len(out) > len(words) - 48 - 96 - len("seven")
        assert words.startswith(out)

    def test_a_word_without_an_end_is_held_no_longer_than_a_longest_word(self) -> None:
        out, most = streamed(["x"] * 5000, 48, 96)
        assert out == "x" * 5000
        assert most <= 48 + 96 + MAX_WORD_CHARS

    def test_what_was_let_out_stands_before_the_next_look(self) -> None:
        window = HoldbackBuffer(16, 1)
        window.push("my badge number is B-12345 and so on and on")
        window.release([], last=False)
        assert window.text().startswith("my badge number is")

    def test_a_finding_counts_once(self) -> None:
        window, counts = HoldbackBuffer(16, 1), []
        for piece in [f"a {EMAIL}", " and more", " and more", " and more of it"]:
            window.push(piece)
            counts += window.release(look(window.text()), last=False)[1]
        assert [one.entity for one in counts] == ["EMAIL_ADDRESS"]


async def finds_emails(side: Side, texts: Sequence[str]) -> list[list[Finding]]:
    return [look(text) for text in texts]


async def blocks_emails(side: Side, texts: Sequence[str]) -> list[list[Finding]]:
    return [[one._replace(action="block") for one in look(text)] for text in texts]


GUARD = Guard(PresidioGuardrail(hold_back_chars=24, step_chars=8), finds_emails)


def chunk(delta: dict[str, Any], finish: str | None = None, index: int = 0) -> str:
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return "data: " + json.dumps({"id": "c", "model": "m", "choices": [choice]}) + "\n\n"


def text_chunk(text: str, finish: str | None = None) -> str:
    choice = {"index": 0, "text": text, "finish_reason": finish}
    return "data: " + json.dumps({"id": "c", "model": "m", "choices": [choice]}) + "\n\n"


USAGE = 'data: {"choices":[],"usage":{"completion_tokens":3}}\n\n'


def rewritten(*packets: str, guard: Guard = GUARD, tally: FindingCounts | None = None) -> list[Any]:
    """The events that a client's own decoder reads."""

    async def source() -> AsyncIterator[str]:
        for packet in packets:
            yield packet

    async def run() -> list[str]:
        stream = GuardedStream(
            guard, StageTimings(), tally if tally is not None else FindingCounts()
        )
        return [packet async for packet in stream.rewrite(source())]

    raw = "".join(asyncio.run(run())).encode()
    return [event.json() for event in SSEDecoder().iter_bytes(iter([raw]))]


def content(events: Sequence[Any], name: str = "content", index: int = 0) -> str:
    choices = [c for e in events for c in e["choices"] if c["index"] == index]
    return "".join(c["delta"].get(name) or "" for c in choices)


class TestStreams:
    def test_an_address_split_over_three_chunks_is_caught(self) -> None:
        tally = FindingCounts()
        events = rewritten(
            chunk({"role": "assistant", "content": ""}),
            chunk({"content": "Write to jane.r"}),
            chunk({"content": "oe@exam"}),
            chunk({"content": "ple.com for more about it, whenever you like."}),
            chunk({}, "stop"),
            USAGE,
            tally=tally,
        )
        assert content(events) == "Write to <EMAIL_ADDRESS> for more about it, whenever you like."
        assert "jane" not in json.dumps(events)
        assert events[0]["choices"][0]["delta"]["role"] == "assistant"
        assert events[-2]["choices"][0]["finish_reason"] == "stop"
        assert events[-1]["usage"] == {"completion_tokens": 3}
        assert tally == {("EMAIL_ADDRESS", "redact"): 1}

    def test_text_comes_before_the_end_that_it_belongs_to(self) -> None:
        events = rewritten(chunk({"content": "hi"}), chunk({"content": "!"}, "stop"), USAGE)
        assert [e["choices"][0]["finish_reason"] for e in events[:-1]] == [None, "stop"]
        assert content(events) == "hi!"

    def test_several_choices_and_texts_are_kept_apart(self) -> None:
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

    def test_the_arguments_of_a_tool_call(self) -> None:
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
        told = "".join(c["function"].get("arguments") or "" for c in calls)
        assert told == '{"to": "<EMAIL_ADDRESS>"}'

    def test_a_block_ends_the_stream_and_names_only_the_type(self) -> None:
        guard = Guard(GUARD.spec, blocks_emails)
        with pytest.raises(BlockedError, match="answer: it contains EMAIL_ADDRESS") as caught:
            rewritten(chunk({"content": f"Write to {EMAIL}"}), chunk({}, "stop"), guard=guard)
        assert EMAIL not in str(caught.value)
        assert caught.value.code == "content_blocked"

    def test_an_engines_error_passes(self) -> None:
        error = 'data: {"error":{"message":"x","type":"y","code":500}}\n\n'
        assert rewritten(error) == [{"error": {"message": "x", "type": "y", "code": 500}}]


def chat(*contents: Any, **more: Any) -> Any:
    messages = [{"role": "user", "content": content} for content in contents]
    return SimpleNamespace(messages=messages, **more)


class TestRequests:
    def test_every_text_of_a_chat_is_looked_at(self) -> None:
        body = chat(EMAIL, iter([{"type": "text", "text": EMAIL}, {"type": "image_url"}]), None)
        call = {"function": {"name": "f", "arguments": f'"{EMAIL}"'}}
        body.messages.append({"role": "assistant", "tool_calls": iter([call])})
        asyncio.run(GUARD.check_prompt(RequestTexts(body), FindingCounts()))
        told = json.dumps(body.messages)
        assert EMAIL not in told
        assert told.count("<EMAIL_ADDRESS>") == 3

    @pytest.mark.parametrize("prompt", [EMAIL, [EMAIL, f"x {EMAIL}"]])
    def test_prompts_of_completions(self, prompt: Any) -> None:
        body = SimpleNamespace(prompt=prompt)
        tally = FindingCounts()
        asyncio.run(GUARD.check_prompt(RequestTexts(body), tally))
        assert EMAIL not in str(body.prompt)
        assert tally.total() == (1 if isinstance(prompt, str) else 2)

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
    def test_what_gets_past_a_guardrail_is_refused(self, body: Any) -> None:
        with pytest.raises(RefusedError) as caught:
            asyncio.run(GUARD.check_prompt(RequestTexts(body), FindingCounts()))
        assert (caught.value.code, caught.value.status) == ("not_with_guardrail", 400)

    def test_a_guardrail_of_one_side_leaves_the_other(self) -> None:
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

    def test_what_does_not_answer_lets_nothing_pass(self) -> None:
        async def broken(side: Side, texts: Sequence[str]) -> list[list[Finding]]:
            raise ConnectionError(f"could not send {texts[0]}")

        with pytest.raises(RefusedError, match="ConnectionError") as caught:
            asyncio.run(
                Guard(GUARD.spec, broken).check_prompt(RequestTexts(chat(EMAIL)), FindingCounts())
            )
        assert caught.value.status == 503
        assert EMAIL not in str(caught.value)


class TestTogether:
    def test_texts_that_come_while_a_call_runs_share_the_next(self) -> None:
        calls: list[list[str]] = []

        async def call(texts: list[str]) -> list[list[Finding]]:
            calls.append(texts)
            await asyncio.sleep(0.01)
            return [look(text) for text in texts]

        async def run() -> list[list[list[Finding]]]:
            together = MicroBatcher(call, limit=1)
            asks = [together("prompt", texts) for texts in (["a"], [EMAIL], ["b", EMAIL])]
            return await asyncio.gather(*asks)

        found = asyncio.run(run())
        assert calls == [["a"], [EMAIL, "b", EMAIL]]
        assert [[len(one) for one in each] for each in found] == [[0], [1], [0, 1]]

    def test_a_failed_call_fails_those_in_it_and_not_the_next(self) -> None:
        answers = iter([ConnectionError("gone"), None])

        async def call(texts: list[str]) -> list[list[Finding]]:
            await asyncio.sleep(0)
            if error := next(answers):
                raise error
            return [[] for _ in texts]

        async def run() -> list[Any]:
            together = MicroBatcher(call, limit=1)
            asks = [together("prompt", [text]) for text in "ab"]
            return await asyncio.gather(*asks, return_exceptions=True)

        first, second = asyncio.run(run())
        assert isinstance(first, ConnectionError)
        assert second == [[]]


class TestVerdicts:
    @pytest.mark.parametrize(
        ("said", "expected"),
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
    def test_llama_guards_answers(self, said: str, expected: list[str]) -> None:
        assert violated_categories(GuardAnswerFormat(), said) == expected

    def test_another_classifiers(self) -> None:
        verdict = GuardAnswerFormat(
            safe="^No", unsafe="^Yes", categories=r"\[(\w+)\]", unclear="allow"
        )
        assert violated_categories(verdict, "Yes, this is [spam]") == ["spam"]
        assert violated_categories(verdict, "No.") == violated_categories(verdict, "Hm.") == []

    def test_a_served_guard_model_judges(self) -> None:
        def answer(body: dict[str, Any], number: int) -> Script:
            said = "unsafe\nS2" if "poison" in body["messages"][0]["content"] else "safe"
            choice = {"index": 0, "message": {"role": "assistant", "content": said}}
            told = {"id": "x", "object": "chat.completion", "created": 1, "model": "g"}
            return Script(status=201, body=json.dumps(told | {"choices": [choice]}).encode())

        async def run() -> tuple[Any, list[Any]]:
            async with ScriptedServer(answer) as server:
                spec = GuardEndpoint(base_url=server.base_url, model_id="g")
                judge = GuardModelClient(spec, endpoint_client(spec))
                found = await judge("answer", ["tea", "a poison", " "])
                with pytest.raises(BlockedError, match="prompt: it contains S2"):
                    await Guard(spec, judge).check_prompt(
                        RequestTexts(chat("poison")), FindingCounts()
                    )
                return found, [exchange.body for exchange in server.log]

        found, asked = asyncio.run(run())
        assert found == [[], [Finding(0, 8, "S2", 1.0, "block")], []]
        assert [body["messages"][0]["role"] for body in asked] == ["assistant", "assistant", "user"]
        assert {body["model"] for body in asked} == {"g"}

    def test_a_template_becomes_a_prompt_and_late_is_unclear(self) -> None:
        asked = []

        async def ask(fields: dict[str, Any]) -> str:
            asked.append(fields)
            await asyncio.sleep(5)
            return "safe"

        spec = GuardModel(model=ModelSpec(id="g"), template="{role} wrote: {text}", timeout_s=0.01)
        found = asyncio.run(GuardModelClient(spec, ask)("prompt", ["a {role}"]))
        assert asked == [{"prompt": "user wrote: a {role}", "max_tokens": 16, "temperature": 0.0}]
        assert [one.entity for one in found[0]] == ["UNCLEAR"]
