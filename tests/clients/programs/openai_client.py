"""The checks of OpenAI's Python client."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import openai
from protocol import (
    LONG_TOKENS,
    MAX_TOKENS,
    MESSAGES,
    NO_MODEL,
    REQUESTS,
    TOOL_MESSAGES,
    TOOLS,
    WRONG_KEY,
    Target,
    answer,
    calls,
    serve,
    usage,
)
from pydantic import BaseModel, Field

NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}


class Reply(BaseModel):
    kind: Literal["metric", "setting", "technique"]
    certain: bool
    note: str = Field(max_length=20)


def client(target: Target, **options: Any) -> openai.OpenAI:
    settings: dict[str, Any] = {"api_key": target.api_key, "max_retries": 0, "timeout": 60}
    return openai.OpenAI(base_url=target.base_url, **(settings | options))


def request(target: Target, **fields: Any) -> dict[str, Any]:
    common = {"model": target.model, "messages": MESSAGES, "max_tokens": MAX_TOKENS}
    return common | {"temperature": 0} | fields


def models(target: Target) -> dict[str, Any]:
    retrieved = client(target).models.retrieve(target.model)
    return {"models": [model.id for model in client(target).models.list()], "one": retrieved.id}


def chat(target: Target, **options: Any) -> dict[str, Any]:
    return answer(client(target, **options).chat.completions.create(**request(target)))


def completions(target: Target) -> dict[str, Any]:
    return answer(
        client(target).completions.create(
            model=target.model, prompt=REQUESTS["prompt"], max_tokens=8, temperature=0
        )
    )


def stream(target: Target) -> dict[str, Any]:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client(target).chat.completions.create(**request(target, **options)))
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    texts = [choice.delta.content for choice in choices if choice.delta.content]
    used = chunks[-1].usage
    counts = usage(used.prompt_tokens, used.completion_tokens)
    return {
        "text": "".join(texts),
        "chunks": len(texts),
        "finish": choices[-1].finish_reason,
        "usage": counts,
    }


def concurrent(target: Target) -> dict[str, Any]:
    """Three requests at once with the asynchronous client."""

    async def run() -> list[Any]:
        settings: Any = {"base_url": target.base_url, "api_key": target.api_key, "max_retries": 0}
        async with openai.AsyncOpenAI(**settings) as asynchronous:
            create = asynchronous.chat.completions.create
            return await asyncio.gather(*(create(**request(target)) for _ in range(3)))

    return {"answers": [answer(completion) for completion in asyncio.run(run())]}


def abort(target: Target) -> dict[str, Any]:
    extra: Any = {"extra_body": {"ignore_eos": True}, "max_tokens": LONG_TOKENS, "stream": True}
    chunks = client(target).chat.completions.create(**request(target, **extra))
    read = [next(chunks) for _ in range(5)]
    chunks.close()
    return {"chunks": len(read)}


def parse(target: Target) -> dict[str, Any]:
    completion: Any = client(target).chat.completions.parse(
        **request(target, response_format=Reply, max_tokens=200)
    )
    return {"parsed": completion.choices[0].message.parsed.model_dump()}


def json_mode(target: Target) -> dict[str, Any]:
    fields = request(target, **REQUESTS["json_mode"])
    return answer(client(target).chat.completions.create(**fields))


def tool(choice: Any, **fields: Any) -> Any:
    def check(target: Target) -> dict[str, Any]:
        create = client(target).chat.completions.create
        fields_ = {"tools": TOOLS, "tool_choice": choice} | fields
        return calls(create(**request(target, **fields_)))

    return check


def tool_stream(target: Target) -> dict[str, Any]:
    """A named call whose arguments come in pieces, put together by the client's own helper."""
    manager = client(target).chat.completions.stream(
        **request(target, tools=TOOLS, tool_choice=NAMED)
    )
    with manager as events:
        return calls(events.get_final_completion())


def tool_result(target: Target) -> dict[str, Any]:
    fields = {"messages": TOOL_MESSAGES, "tools": TOOLS}
    return answer(client(target).chat.completions.create(**request(target, **fields)))


def embeddings(target: Target) -> dict[str, Any]:
    vectors = client(target).embeddings.create(model=target.model, input="a")
    return {"vectors": len(vectors.data)}


def responses(target: Target) -> dict[str, Any]:
    response: Any = client(target).responses.create(
        model=target.model,
        input=REQUESTS["question"],
        temperature=0,
        max_output_tokens=MAX_TOKENS,
    )
    used = response.usage
    counts = usage(used.input_tokens, used.output_tokens)
    return {"text": response.output_text, "finish": response.status, "usage": counts}


def responses_stream(target: Target) -> dict[str, Any]:
    manager = client(target).responses.stream(
        model=target.model,
        input=REQUESTS["question"],
        temperature=0,
        max_output_tokens=MAX_TOKENS,
    )
    with manager as events:
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        final: Any = events.get_final_response()
    counts = usage(final.usage.input_tokens, final.usage.output_tokens)
    return {
        "text": "".join(deltas),
        "chunks": len(deltas),
        "finish": final.status,
        "usage": counts,
    }


def wrong_key(target: Target) -> dict[str, Any]:
    return chat(target, api_key=WRONG_KEY)


def wrong_model(target: Target) -> dict[str, Any]:
    return answer(client(target).chat.completions.create(**request(target, model=NO_MODEL)))


def wrong_value(target: Target) -> dict[str, Any]:
    return answer(client(target).chat.completions.create(**request(target, temperature=-1)))


def retry(target: Target) -> dict[str, Any]:
    return chat(target, max_retries=8)


if __name__ == "__main__":
    serve(
        "openai",
        {
            "models": models,
            "chat": chat,
            "completions": completions,
            "stream": stream,
            "concurrent": concurrent,
            "abort": abort,
            "structured output": parse,
            "JSON mode": json_mode,
            "tool named": tool(NAMED),
            "tool required": tool("required"),
            "tool auto": tool("auto"),
            "tool stream": tool_stream,
            "tool result": tool_result,
            "embeddings": embeddings,
            "responses": responses,
            "responses stream": responses_stream,
            "wrong key": wrong_key,
            "wrong model": wrong_model,
            "wrong value": wrong_value,
            "full": chat,
            "retry": retry,
        },
    )
