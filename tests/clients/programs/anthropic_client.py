"""The checks of Anthropic's Python client."""

from __future__ import annotations

import json
from typing import Any

import anthropic
from protocol import (
    LONG_TOKENS,
    MAX_TOKENS,
    MESSAGES,
    NO_MODEL,
    REQUESTS,
    TOOLS,
    WRONG_KEY,
    Target,
    serve,
    usage,
)

OWN_TOOLS: Any = [
    {
        "name": tool["function"]["name"],
        "description": tool["function"]["description"],
        "input_schema": tool["function"]["parameters"],
    }
    for tool in TOOLS
]


def client(target: Target, **options: Any) -> anthropic.Anthropic:
    settings: dict[str, Any] = {"api_key": target.api_key, "max_retries": 0, "timeout": 60}
    return anthropic.Anthropic(base_url=target.root_url, **(settings | options))


def request(target: Target, **fields: Any) -> dict[str, Any]:
    # The client itself has no argument for the temperature.
    extra = {"temperature": 0} | fields.pop("extra_body", {})
    common = {"model": target.model, "messages": MESSAGES, "max_tokens": MAX_TOKENS}
    return common | {"extra_body": extra} | fields


def counts(message: Any) -> dict[str, Any]:
    return usage(message.usage.input_tokens, message.usage.output_tokens)


def text(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def answer(message: Any) -> dict[str, Any]:
    return {"text": text(message), "finish": message.stop_reason, "usage": counts(message)}


def calls(message: Any) -> dict[str, Any]:
    blocks = [block for block in message.content if block.type == "tool_use"]
    return {"calls": [[block.name, block.input] for block in blocks], "text": text(message)}


def messages(target: Target, **options: Any) -> dict[str, Any]:
    return answer(client(target, **options).messages.create(**request(target)))


def bearer(target: Target) -> dict[str, Any]:
    """The key as ``Authorization: Bearer``, as ANTHROPIC_AUTH_TOKEN makes the client send it."""
    return messages(target, api_key=None, auth_token=target.api_key)


def stream(target: Target) -> dict[str, Any]:
    with client(target).messages.stream(**request(target)) as events:
        texts = list(events.text_stream)
        final = events.get_final_message()
    return answer(final) | {"text": "".join(texts), "chunks": len(texts)}


def abort(target: Target) -> dict[str, Any]:
    fields = {"max_tokens": LONG_TOKENS, "extra_body": {"ignore_eos": True}, "stream": True}
    events = client(target).messages.create(**request(target, **fields))
    read = [next(events) for _ in range(5)]
    events.close()
    return {"chunks": len(read)}


def count_tokens(target: Target) -> dict[str, Any]:
    counted = client(target).messages.count_tokens(model=target.model, messages=MESSAGES)
    return {"tokens": counted.input_tokens}


def tool(choice: Any) -> Any:
    def check(target: Target) -> dict[str, Any]:
        fields = request(target, tools=OWN_TOOLS, tool_choice=choice)
        return calls(client(target).messages.create(**fields))

    return check


def tool_result(target: Target) -> dict[str, Any]:
    user, call, result = REQUESTS["tool_messages"]
    function = call["tool_calls"][0]["function"]
    use = {"type": "tool_use", "id": "call_1", "name": function["name"]}
    use["input"] = json.loads(function["arguments"])
    content = {"type": "tool_result", "tool_use_id": "call_1", "content": result["content"]}
    conversation = [
        {"role": "user", "content": user["content"]},
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [content]},
    ]
    fields = request(target, messages=conversation, tools=OWN_TOOLS)
    return answer(client(target).messages.create(**fields))


def wrong_key(target: Target) -> dict[str, Any]:
    return messages(target, api_key=WRONG_KEY)


def wrong_model(target: Target) -> dict[str, Any]:
    return answer(client(target).messages.create(**request(target, model=NO_MODEL)))


def wrong_value(target: Target) -> dict[str, Any]:
    return answer(client(target).messages.create(**request(target, extra_body={"temperature": -1})))


def retry(target: Target) -> dict[str, Any]:
    return messages(target, max_retries=8)


if __name__ == "__main__":
    serve(
        "anthropic",
        {
            "messages": messages,
            "bearer key": bearer,
            "messages stream": stream,
            "abort": abort,
            "token count": count_tokens,
            "tool named": tool({"type": "tool", "name": "get_weather"}),
            "tool required": tool({"type": "any"}),
            "tool auto": tool({"type": "auto"}),
            "tool result": tool_result,
            "wrong key": wrong_key,
            "wrong model": wrong_model,
            "wrong value": wrong_value,
            "full": messages,
            "retry": retry,
        },
    )
