"""Which texts of a request are checked. Ground truth: what a scripted inspector was shown."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.email_guard import CHAT, EMAIL, GUARD, chat

from serving.guardrail.findings import Finding, FindingCounts
from serving.guardrail.guard import Guard, NotRedactableError, RefusedError
from serving.guardrail.texts import RequestTexts
from serving.guardrail.vocabulary import WORDS
from serving.spec.guardrail import PresidioGuardrail, Side

COMPLETIONS, RESPONSES, MESSAGES = "/v1/completions", "/v1/responses", "/v1/messages"


def check(path: str, body: dict[str, Any]) -> FindingCounts:
    counts = FindingCounts()
    asyncio.run(GUARD.check_prompt(RequestTexts(path, body), counts))
    return counts


def part(kind: str, **fields: Any) -> dict[str, Any]:
    return chat([{"type": kind} | fields])


def function(**fields: Any) -> dict[str, Any]:
    return chat("x", tools=[{"type": "function", "function": {"name": "f"} | fields}])


def parameters(schema: Any) -> dict[str, Any]:
    return function(parameters={"type": "object", "properties": {"a": schema}})


def last(**fields: Any) -> dict[str, Any]:
    body = chat("x")
    body["messages"].append({"role": "assistant", "content": "y"} | fields)
    return body


def call(**fields: Any) -> dict[str, Any]:
    function = {"name": "f", "arguments": "{}"} | fields
    return last(tool_calls=[{"id": "1", "type": "function", "function": function}])


def item(kind: str, **fields: Any) -> dict[str, Any]:
    return {"input": [{"type": kind} | fields]}


def block(kind: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": kind} | fields]}]}


REDACTED = [
    (CHAT, part("text", text=EMAIL)),
    (CHAT, part("refusal", refusal=EMAIL)),
    (CHAT, part("thinking", thinking=EMAIL)),
    (CHAT, part("input_text", text=EMAIL)),
    (CHAT, part("output_text", text=EMAIL)),
    (CHAT, chat([EMAIL])),
    (CHAT, part("text", text="x", note=EMAIL)),
    (CHAT, function(description=EMAIL)),
    (CHAT, parameters({"type": "string", "description": EMAIL})),
    (CHAT, chat("x", documents=[{"title": EMAIL, "text": "y"}])),
    (CHAT, chat("x", documents=[{"title": "y", "text": EMAIL}])),
    (CHAT, chat("x", chat_template_kwargs={"persona": EMAIL})),
    (CHAT, chat("x", chat_template_kwargs={"a": {"b": [EMAIL]}})),
    (CHAT, chat("x", metadata={"note": EMAIL})),
    (CHAT, chat("x", user=EMAIL)),
    (CHAT, last(content=EMAIL)),
    (CHAT, last(content=EMAIL, prefix=True)),
    (CHAT, last(reasoning=EMAIL)),
    (CHAT, last(reasoning_content=EMAIL)),
    (CHAT, last(refusal=EMAIL)),
    (CHAT, last(name=EMAIL)),
    (CHAT, last(mood={"note": EMAIL})),
    (CHAT, call(arguments=json.dumps({"to": EMAIL}))),
    (CHAT, call(arguments={"to": EMAIL})),
    (COMPLETIONS, {"prompt": EMAIL}),
    (COMPLETIONS, {"prompt": ["x", EMAIL]}),
    (COMPLETIONS, {"prompt": "x", "suffix": EMAIL}),
    (RESPONSES, {"input": EMAIL}),
    (RESPONSES, {"input": "x", "instructions": EMAIL}),
    (RESPONSES, {"input": [{"role": "user", "content": EMAIL}]}),
    (RESPONSES, item("message", role="user", content=[{"type": "input_text", "text": EMAIL}])),
    (RESPONSES, item("function_call", call_id="1", name="f", arguments=f'{{"a": "{EMAIL}"}}')),
    (RESPONSES, item("function_call_output", call_id="1", output=EMAIL)),
    (
        RESPONSES,
        item("function_call_output", call_id="1", output=[{"type": "input_text", "text": EMAIL}]),
    ),
    (RESPONSES, item("reasoning", summary=[{"type": "summary_text", "text": EMAIL}])),
    (RESPONSES, item("reasoning", content=[{"type": "reasoning_text", "text": EMAIL}])),
    (MESSAGES, {"messages": [], "system": EMAIL}),
    (MESSAGES, {"messages": [], "system": [{"type": "text", "text": EMAIL}]}),
    (MESSAGES, {"messages": [{"role": "user", "content": EMAIL}]}),
    (MESSAGES, block("text", text=EMAIL)),
    (MESSAGES, block("thinking", thinking=EMAIL, signature="s")),
    (MESSAGES, block("tool_use", id="1", name="f", input={"to": [EMAIL]})),
    (MESSAGES, block("tool_result", tool_use_id="1", content=EMAIL)),
    (MESSAGES, block("tool_result", tool_use_id="1", content=[{"type": "text", "text": EMAIL}])),
    (MESSAGES, {"messages": [], "tools": [{"name": "f", "description": EMAIL}]}),
    ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": EMAIL}]}),
    ("/v1/embeddings", {"input": EMAIL}),
    ("/v1/embeddings", {"input": [EMAIL]}),
    ("/v1/embeddings", chat(EMAIL)),
    ("/rerank", {"query": EMAIL, "documents": []}),
    ("/rerank", {"query": "x", "documents": [EMAIL]}),
    ("/rerank", {"query": "x", "documents": [{"text": EMAIL}]}),
    ("/rerank", {"query": "x", "documents": {"content": [{"type": "text", "text": EMAIL}]}}),
    ("/score", {"text_1": EMAIL, "text_2": ["x"]}),
    ("/score", {"text_1": "x", "text_2": [EMAIL]}),
    ("/score", {"queries": "x", "items": [EMAIL]}),
    ("/tokenize", {"prompt": EMAIL}),
    ("/tokenize", chat(EMAIL)),
]

REFUSED = [
    (CHAT, function(name=EMAIL), "tools[0].function.name"),
    (CHAT, parameters({"enum": [EMAIL]}), "tools[0].function.parameters.properties.*.enum[0]"),
    (CHAT, parameters({"const": EMAIL}), "tools[0].function.parameters.properties.*.const"),
    (CHAT, parameters({"default": EMAIL}), "tools[0].function.parameters.properties.*.default"),
    (
        CHAT,
        parameters({"default": {"description": EMAIL}}),
        "tools[0].function.parameters.properties.*.default.description",
    ),
    (CHAT, parameters({"pattern": EMAIL}), "tools[0].function.parameters.properties.*.pattern"),
    (
        CHAT,
        parameters({"pattern": r"jane\.roe@example\.com"}),
        "tools[0].function.parameters.properties.*.pattern",
    ),
    (
        CHAT,
        function(parameters={"properties": {EMAIL: {}}}),
        "a key in tools[0].function.parameters.properties",
    ),
    (
        CHAT,
        function(parameters={"required": [EMAIL]}),
        "tools[0].function.parameters.required[0]",
    ),
    (CHAT, chat("x", stop=EMAIL), "stop"),
    (CHAT, chat("x", stop=["a", EMAIL]), "stop[1]"),
    (CHAT, chat("x", bad_words=[EMAIL]), "bad_words[0]"),
    (
        CHAT,
        chat("x", response_format={"type": "json_schema", "json_schema": {"name": EMAIL}}),
        "response_format.json_schema.name",
    ),
    (
        CHAT,
        chat("x", response_format={"json_schema": {"schema": {"enum": [EMAIL]}}}),
        "response_format.json_schema.schema.enum[0]",
    ),
    (CHAT, chat("x", structured_outputs={"regex": EMAIL}), "structured_outputs.regex"),
    (
        CHAT,
        chat("x", structured_outputs={"grammar": 'root ::= "jane.roe" "@example.com"'}),
        "structured_outputs.grammar",
    ),
    (CHAT, chat("x", structured_outputs={"choice": [EMAIL]}), "structured_outputs.choice[0]"),
    (CHAT, chat("x", structured_outputs={"json": {"const": EMAIL}}), "structured_outputs.json."),
    (CHAT, chat("x", structured_outputs={"json": f'"{EMAIL}"'}), "structured_outputs.json"),
    (CHAT, chat("x", tool_choice={"function": {"name": EMAIL}}), "tool_choice.function.name"),
    (CHAT, chat("x", chat_template_kwargs={EMAIL: 1}), "a key in chat_template_kwargs"),
    (CHAT, chat("x", documents=[{EMAIL: "x"}]), "a key in documents[0]"),
    (CHAT, chat("x", cache_salt=EMAIL), "cache_salt"),
    (CHAT, chat("x", logit_bias={EMAIL: 1}), "a key in logit_bias"),
    (CHAT, chat("x", seed=EMAIL), "seed"),
    (CHAT, chat("x", **{EMAIL: 1}), "a key in the body"),
    (CHAT, {"messages": [{"role": EMAIL, "content": "x"}]}, "messages[0].role"),
    (CHAT, call(name=EMAIL), "messages[1].tool_calls[0].function.name"),
    (CHAT, last(**{EMAIL: 1}), "a key in messages[1]"),
    (
        CHAT,
        {"messages": [{"role": "tool", "tool_call_id": EMAIL, "content": "x"}]},
        "messages[0].tool_call_id",
    ),
    (
        CHAT,
        {"messages": [{"role": "tool", "name": EMAIL, "content": "x"}]},
        "messages[0].name",
    ),
    (RESPONSES, {"input": "x", "text": {"format": {"name": EMAIL}}}, "text.format.name"),
    (RESPONSES, {"input": "x", "tools": [{"type": "function", "name": EMAIL}]}, "tools[0].name"),
    (
        RESPONSES,
        {"input": "x", "previous_input_messages": [{"content": [{"text": EMAIL}]}]},
        "previous_input_messages",
    ),
    (MESSAGES, {"messages": [], "stop_sequences": [EMAIL]}, "stop_sequences[0]"),
    (
        MESSAGES,
        {"messages": [], "tools": [{"name": "f", "input_schema": {"enum": [EMAIL]}}]},
        "tools[0].input_schema.enum[0]",
    ),
    (
        MESSAGES,
        block("tool_use", id="1", name="f", input={EMAIL: 1}),
        "a key in messages[0].content[0].input",
    ),
    (
        MESSAGES,
        {"messages": [], "output_config": {"format": {"schema": {"enum": [EMAIL]}}}},
        "output_config.format.schema.enum[0]",
    ),
]

UNREADABLE = [
    (CHAT, part("image_url", image_url={"url": "https://example.com/a.png"}), "image_url"),
    (CHAT, chat([{"image_url": "https://example.com/a.png"}]), "image_url"),
    (CHAT, part("text", text="x", image_url="data:,"), "image_url"),
    (CHAT, part("input_audio", input_audio={"data": "x"}), "input_audio"),
    (CHAT, part("file", file={"file_id": "x"}), "file"),
    (CHAT, part("prompt_embeds", data="x"), "data"),
    (CHAT, part(EMAIL, text="x"), "of this type"),
    (CHAT, chat("x", chat_template="{{ 1 }}"), "chat_template"),
    (CHAT, chat("x", tools=[{"type": "mcp", "server_url": "https://example.com"}]), "mcp"),
    (COMPLETIONS, {"prompt": "x", "prompt_embeds": "x"}, "token ids"),
    (COMPLETIONS, {"prompt": [1]}, "token ids"),
    (COMPLETIONS, {"prompt": [[1]]}, "token ids"),
    ("/v1/embeddings", {"input": [1]}, "token ids"),
    ("/v1/embeddings", {"input": [[1]]}, "token ids"),
    (RESPONSES, item("message", role="user", content=[{"type": "input_image"}]), "input_image"),
    (RESPONSES, item("reasoning", summary=[], encrypted_content="x"), "encrypted_content"),
    (RESPONSES, item("item_reference", id="x"), "item_reference"),
    (RESPONSES, {"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
    (RESPONSES, {"input": "x", "tools": [{"type": "web_search"}]}, "web_search"),
    (RESPONSES, {"input": "x", "background": True}, "background"),
    (RESPONSES, {"input": "x", "include": ["reasoning.encrypted_content"]}, "include"),
    (RESPONSES, {"input": "x", "enable_response_messages": True}, "enable_response_messages"),
    (MESSAGES, block("image", source={"type": "url", "url": "https://example.com"}), "source"),
    (MESSAGES, block("document", source={}), "source"),
    (MESSAGES, block("redacted_thinking", data="x"), "data"),
    (
        MESSAGES,
        block("tool_result", tool_use_id="1", content=[{"type": "image", "source": {}}]),
        "source",
    ),
    ("/rerank", {"query": "x", "documents": [{"content": [{"type": "image_url"}]}]}, "image_url"),
    ("/detokenize", {"tokens": [1]}, "tokens"),
]


class TestFields:
    @pytest.mark.parametrize(("path", "body"), REDACTED)
    def test_texts_are_redacted(self, path: str, body: dict[str, Any]) -> None:
        expected = json.loads(json.dumps(body).replace(EMAIL, "<EMAIL_ADDRESS>"))
        counts = check(path, body)
        assert body == expected
        assert counts == {("EMAIL_ADDRESS", "redact"): 1}

    @pytest.mark.parametrize(("path", "body", "field"), REFUSED)
    def test_texts_that_cannot_change_are_refused(
        self, path: str, body: dict[str, Any], field: str
    ) -> None:
        with pytest.raises(NotRedactableError) as caught:
            check(path, body)
        assert caught.value.param is not None
        assert caught.value.param.startswith(field.removeprefix("a key in "))
        assert field in str(caught.value)
        assert "EMAIL_ADDRESS" in str(caught.value)
        assert EMAIL not in str(caught.value)
        assert (caught.value.code, caught.value.status) == ("content_blocked", 400)

    @pytest.mark.parametrize(("path", "body", "name"), UNREADABLE)
    def test_what_cannot_be_read_is_refused_by_name(
        self, path: str, body: dict[str, Any], name: str
    ) -> None:
        with pytest.raises(RefusedError) as caught:
            check(path, body)
        assert name in str(caught.value)
        assert EMAIL not in str(caught.value)
        assert (caught.value.code, caught.value.status) == ("not_with_guardrail", 400)

    def test_numbers_are_texts(self) -> None:
        async def finds_a_card(side: Side, texts: Sequence[str]) -> list[list[Finding]]:
            found = [text.find("4111111111111111") for text in texts]
            return [
                [Finding(at, at + 16, "CREDIT_CARD", 1.0, "redact")] if at >= 0 else []
                for at in found
            ]

        guard = Guard(PresidioGuardrail(), finds_a_card)
        card = 4111111111111111
        body = block("tool_use", id="1", name="f", input={"card": card, "other": 1})
        asyncio.run(guard.check_prompt(RequestTexts(MESSAGES, body), FindingCounts()))
        assert body["messages"][0]["content"][0]["input"] == {"card": "<CREDIT_CARD>", "other": 1}
        body = call(arguments=f'{{"card": {card}, "minus": -{card}.0}}')
        asyncio.run(guard.check_prompt(RequestTexts(CHAT, body), FindingCounts()))
        arguments = body["messages"][1]["tool_calls"][0]["function"]["arguments"]
        assert json.loads(arguments)["card"] == "<CREDIT_CARD>"
        for schema in ({"enum": [card]}, {"default": float(card)}):
            texts = RequestTexts(CHAT, parameters(schema))
            with pytest.raises(NotRedactableError, match=r"tools\[0\]"):
                asyncio.run(guard.check_prompt(texts, FindingCounts()))
        texts = RequestTexts(CHAT, chat("x", seed=card, logit_bias={"123": card}))
        asyncio.run(guard.check_prompt(texts, FindingCounts()))

    @pytest.mark.parametrize("pieces", [["jane.r", "oe@exam", "ple.com"], list(EMAIL)])
    def test_a_text_split_over_parts_is_redacted_across_them(self, pieces: list[str]) -> None:
        body = chat([{"type": "text", "text": piece} for piece in pieces])
        counts = check(CHAT, body)
        texts = [part["text"] for part in body["messages"][0]["content"]]
        assert texts == ["<EMAIL_ADDRESS>"] * len(pieces)
        assert counts == {("EMAIL_ADDRESS", "redact"): 1}

    @pytest.mark.parametrize("separator", ["", "\n"])
    def test_parts_are_checked_joined_as_templates_join_them(self, separator: str) -> None:
        seen: list[str] = []

        async def watch(side: Side, texts: Sequence[str]) -> list[list[Finding]]:
            seen.extend(texts)
            return [[] for _ in texts]

        body = chat([{"type": "text", "text": text} for text in ("one", "two", "three")])
        guard = Guard(PresidioGuardrail(), watch)
        asyncio.run(guard.check_prompt(RequestTexts(CHAT, body), FindingCounts()))
        assert {"one", "two", "three", separator.join(("one", "two", "three"))} <= set(seen)

    def test_system_texts_are_checked_joined_as_the_messages_api_joins_them(self) -> None:
        body: dict[str, Any] = {
            "system": [{"type": "text", "text": "jane."}, {"type": "text", "text": "roe@"}],
            "messages": [
                {"role": "user", "content": "hi"},
                {"role": "system", "content": "example.com"},
            ],
        }
        check(MESSAGES, body)
        assert EMAIL not in "".join(part["text"] for part in body["system"])
        assert [part["text"] for part in body["system"]] == ["<EMAIL_ADDRESS>"] * 2
        assert body["messages"][1]["content"] == "<EMAIL_ADDRESS>"

    def test_conversation_has_the_texts_of_messages_only_and_the_last_one_last(self) -> None:
        body = chat("a", [{"type": "text", "text": "b"}], "c", tools=[{"description": "d"}])
        assert [slot.text for slot in RequestTexts(CHAT, body).conversation] == ["a", "b", "c"]
        body = {"messages": [{"role": "user", "content": "b"}], "system": "a", "metadata": {}}
        assert [slot.text for slot in RequestTexts(MESSAGES, body).conversation] == ["a", "b"]
        body = {"input": [{"role": "user", "content": "b"}], "instructions": "a"}
        assert [slot.text for slot in RequestTexts(RESPONSES, body).conversation] == ["a", "b"]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every string in a body."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from places(inner, (*path, name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from places(inner, (*path, index))
    elif isinstance(value, str):
        yield path


BODIES = [(path, body) for path, body, *_ in [*REDACTED, *REFUSED]]
PLACES = [
    (path, body, place) for path, body in BODIES for place in places(body) if place != ("model",)
]


def placed(body: dict[str, Any], place: tuple[Any, ...], text: str) -> dict[str, Any]:
    body = json.loads(json.dumps(body).replace(EMAIL, "x"))
    owner = body
    for key in place[:-1]:
        owner = owner["x" if key == EMAIL else key]
    owner["x" if place[-1] == EMAIL else place[-1]] = text
    return body


def is_seen_or_refused(path: str, body: dict[str, Any], text: str) -> bool:
    seen: list[str] = []

    async def watch(side: Side, texts: Sequence[str]) -> list[list[Finding]]:
        seen.extend(texts)
        return [[] for _ in texts]

    try:
        guard = Guard(PresidioGuardrail(), watch)
        asyncio.run(guard.check_prompt(RequestTexts(path, body), FindingCounts()))
    except RefusedError:
        return True
    return any(text in shown for shown in seen)


WORD = st.text(min_size=1, max_size=40).filter(lambda text: text.strip() and text not in WORDS)


class TestEveryString:
    @settings(max_examples=400, deadline=None)
    @given(place=st.sampled_from(PLACES), text=WORD)
    def test_a_string_anywhere_is_seen_or_the_request_is_refused(
        self, place: tuple[str, dict[str, Any], tuple[Any, ...]], text: str
    ) -> None:
        path, body, where = place
        assert is_seen_or_refused(path, placed(body, where, text), text)

    @settings(max_examples=400, deadline=None)
    @given(
        place=st.sampled_from([(path, body) for path, body in BODIES]),
        text=WORD,
        data=st.data(),
        as_key=st.booleans(),
    )
    def test_a_field_that_nobody_knows_is_seen_or_refused(
        self, place: tuple[str, dict[str, Any]], text: str, data: st.DataObject, as_key: bool
    ) -> None:
        path, body = place
        body = copy.deepcopy(body)
        owners = list(objects(body))
        owner = data.draw(st.sampled_from(owners))
        owner[text if as_key else "unheard_of"] = {"deep": [1 if as_key else text]}
        assert is_seen_or_refused(path, body, text)

    def test_every_route_is_covered(self) -> None:
        routes = {path for path, _ in BODIES}
        assert routes >= {CHAT, COMPLETIONS, RESPONSES, MESSAGES, "/v1/messages/count_tokens"}
        assert routes >= {"/v1/embeddings", "/rerank", "/score", "/tokenize"}


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every object in a body."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from objects(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from objects(inner)
