"""What a client must observe. The truth comes from the glossary, the tokenizer and the schemas."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import jsonschema
from support.client_programs import PROGRAMS
from support.paths import ROOT

from serving.models.embedded import TINY_MODEL_ID, tiny_model_path

Observed = dict[str, Any]
Judge = Callable[[Observed], None]

REQUESTS: Any = json.loads((PROGRAMS / "requests.json").read_text())
MESSAGES, TOOLS = REQUESTS["messages"], REQUESTS["tools"]
SCHEMAS = {t["function"]["name"]: t["function"]["parameters"] for t in TOOLS}


@cache
def definition() -> str:
    """Return the entry of the glossary that answers the question."""
    lines = (ROOT / "tools" / "tiny_model" / "glossary.jsonl").read_text().splitlines()
    entries = {entry["term"]: entry["definition"] for entry in map(json.loads, lines)}
    return str(entries["continuous batching"])


@cache
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model_path())


def count(text: str) -> int:
    return len(tokenizer()(text, add_special_tokens=False).input_ids)


def prompt_tokens(messages: Any, tools: Any = None) -> int:
    """Return the number of tokens of a conversation, by the model's own template."""
    text = tokenizer().apply_chat_template(
        messages, tools=tools, add_generation_prompt=True, tokenize=False
    )
    return count(text)


def succeeded(observed: Observed) -> None:
    error = observed.get("error")
    if error:
        raise AssertionError(f"{error['classes'][0]}: {error['message']}")


def answered(finish: str) -> Judge:
    """The whole answer of the glossary, and its usage."""

    def judge(observed: Observed) -> None:
        succeeded(observed)
        assert observed["text"].strip() == definition()
        assert observed["finish"] == finish
        # The end token counts too.
        assert observed["usage"] == {
            "prompt_tokens": prompt_tokens(MESSAGES),
            "completion_tokens": count(definition()) + 1,
        }

    return judge


def streamed(finish: str) -> Judge:
    def judge(observed: Observed) -> None:
        answered(finish)(observed)
        assert observed["chunks"] > 5

    return judge


def all_answered(observed: Observed) -> None:
    succeeded(observed)
    assert len(observed["answers"]) == 3
    for answer in observed["answers"]:
        answered("stop")(answer)


def completed(observed: Observed) -> None:
    """The first 8 tokens after the start of the glossary's entry."""
    succeeded(observed)
    prompt = REQUESTS["prompt"]
    expected = definition().removeprefix(prompt)
    assert observed["text"].strip()
    assert expected.startswith(observed["text"])
    assert observed["finish"] == "length"
    length = len(tokenizer()(prompt).input_ids)
    assert observed["usage"] == {"prompt_tokens": length, "completion_tokens": 8}


def listed(observed: Observed) -> None:
    succeeded(observed)
    assert TINY_MODEL_ID in observed["models"]
    assert observed["one"] == TINY_MODEL_ID
    assert not [name for name in observed["models"] if name.startswith("/")]


def parsed(observed: Observed) -> None:
    succeeded(observed)
    reply = observed["parsed"]
    assert set(reply) == {"kind", "certain", "note"}
    assert reply["kind"] in REQUESTS["kinds"]
    assert isinstance(reply["certain"], bool)
    assert len(reply["note"]) <= 20


def json_object(observed: Observed) -> None:
    """A whole object: JSON mode must not run on until max_tokens.

    The embedded model was trained on texts without quotation marks and braces. The request has a
    bias for both, so that the model ends its strings and objects.
    """
    succeeded(observed)
    end = observed["text"][-40:]
    assert observed["finish"] == "stop", f"finish_reason is {observed['finish']!r} after {end!r}"
    assert isinstance(json.loads(observed["text"]), dict)


def called(*names: str) -> Judge:
    """Calls of some of these tools, with arguments that fit their schemas."""

    def judge(observed: Observed) -> None:
        succeeded(observed)
        assert observed["calls"], f"no tool was called, the text is {observed['text']!r}"
        for name, arguments in observed["calls"]:
            assert name in names
            values = json.loads(arguments) if isinstance(arguments, str) else arguments
            jsonschema.validate(values, SCHEMAS[name])

    return judge


def called_or_answered(observed: Observed) -> None:
    succeeded(observed)
    assert observed["calls"] or observed["text"].strip()
    if observed["calls"]:
        called(*SCHEMAS)(observed)


def continued(observed: Observed) -> None:
    """An answer to a conversation with the result of a tool."""
    succeeded(observed)
    assert observed["text"].strip()
    assert observed["usage"]["prompt_tokens"] in conversation_lengths()


def conversation_lengths() -> set[int]:
    """Return the lengths of what clients make of the conversation.

    Some send an empty content where it is null, and LiteLLM leaves a key out of the schemas.
    """
    conversation = copy.deepcopy(REQUESTS["tool_messages"])
    function = conversation[1]["tool_calls"][0]["function"]
    function["arguments"] = json.loads(function["arguments"])
    shorter = copy.deepcopy(TOOLS)
    for tool in shorter:
        del tool["function"]["parameters"]["additionalProperties"]
    lengths = set()
    for content in (None, ""):
        conversation[1]["content"] = content
        lengths |= {prompt_tokens(conversation, tools) for tools in (TOOLS, shorter)}
    return lengths


def counted(observed: Observed) -> None:
    succeeded(observed)
    assert observed["tokens"] == prompt_tokens(MESSAGES)


def failed(status: int, kind: str, *words: str, code: str | None = None) -> Judge:
    """The client's own exception for a status, whose message has some words."""

    def judge(observed: Observed) -> None:
        error = observed.get("error")
        assert error, f"no error was raised, but {observed}"
        assert kind in error["classes"], f"{error['classes'][0]}: {error['message']}"
        assert error["status"] == status
        for word in words:
            assert word in error["message"]
        if code and error["code"] is not None:
            assert error["code"] == code

    return judge


def shed(observed: Observed) -> None:
    failed(429, "RateLimitError", "capacity")(observed)
    assert int(observed["error"]["retry_after"]) >= 1


def read_five(observed: Observed) -> None:
    succeeded(observed)
    assert observed["chunks"] == 5


UNSUPPORTED = failed(404, "NotFoundError", "cannot serve /v1/embeddings", code="unsupported_route")

JUDGES: dict[str, Judge] = {
    "models": listed,
    "chat": answered("stop"),
    "completions": completed,
    "stream": streamed("stop"),
    "concurrent": all_answered,
    "responses": answered("completed"),
    "responses stream": streamed("completed"),
    "messages": answered("end_turn"),
    "messages stream": streamed("end_turn"),
    "bearer key": answered("end_turn"),
    "token count": counted,
    "abort": read_five,
    "structured output": parsed,
    "structured output by tool": parsed,
    "structured output stream": parsed,
    "JSON mode": json_object,
    "tool named": called("get_weather"),
    "tool required": called(*SCHEMAS),
    "tool auto": called_or_answered,
    "tool stream": called("get_weather"),
    "tool result": continued,
    "embeddings": UNSUPPORTED,
    "wrong key": failed(401, "AuthenticationError", "API key", code="invalid_api_key"),
    "wrong model": failed(404, "NotFoundError", "no-such-model"),
    "wrong value": failed(400, "BadRequestError", "temperature"),
    "full": shed,
}
"""What each check must show, by its name; `retry` is judged like the check it repeats."""
