"""The checks of LiteLLM."""

from __future__ import annotations

from typing import Any, Literal

import litellm
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

litellm.telemetry = False


class Reply(BaseModel):
    kind: Literal["metric", "setting", "technique"]
    certain: bool
    note: str = Field(max_length=20)


def options(target: Target, provider: str = "hosted_vllm", **fields: Any) -> dict[str, Any]:
    common: dict[str, Any] = {
        "model": f"{provider}/{target.model}",
        "api_base": target.base_url,
        "api_key": target.api_key,
        "num_retries": 0,
        "max_retries": 0,
        "timeout": 60,
    }
    return common | fields


def complete(target: Target, **fields: Any) -> Any:
    defaults = {"messages": MESSAGES, "max_tokens": MAX_TOKENS, "temperature": 0}
    return litellm.completion(**options(target, **(defaults | fields)))


def chat(target: Target) -> dict[str, Any]:
    return answer(complete(target))


def completions(target: Target) -> dict[str, Any]:
    fields = {"prompt": REQUESTS["prompt"], "max_tokens": 8, "temperature": 0}
    return answer(litellm.text_completion(**options(target, **fields)))


def stream(target: Target) -> dict[str, Any]:
    chunks = list(complete(target, stream=True, stream_options={"include_usage": True}))
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    texts = [choice.delta.content for choice in choices if choice.delta.content]
    used = next(chunk.usage for chunk in reversed(chunks) if getattr(chunk, "usage", None))
    counts = usage(used.prompt_tokens, used.completion_tokens)
    finish = next(choice.finish_reason for choice in reversed(choices) if choice.finish_reason)
    return {"text": "".join(texts), "chunks": len(texts), "finish": finish, "usage": counts}


def abort(target: Target) -> dict[str, Any]:
    extra = {"extra_body": {"ignore_eos": True}, "max_tokens": LONG_TOKENS, "stream": True}
    chunks = complete(target, **extra)
    read = [next(chunks) for _ in range(5)]
    chunks.completion_stream.close()
    return {"chunks": len(read)}


def structured(target: Target) -> dict[str, Any]:
    completion = complete(target, response_format=Reply, max_tokens=200)
    reply = Reply.model_validate_json(completion.choices[0].message.content)
    return {"parsed": reply.model_dump()}


def json_mode(target: Target) -> dict[str, Any]:
    return answer(complete(target, **REQUESTS["json_mode"]))


def tool(choice: Any) -> Any:
    return lambda target: calls(complete(target, tools=TOOLS, tool_choice=choice))


def tool_result(target: Target) -> dict[str, Any]:
    return answer(complete(target, messages=TOOL_MESSAGES, tools=TOOLS))


def embeddings(target: Target) -> dict[str, Any]:
    return {"vectors": len(litellm.embedding(**options(target, input=["a"])).data)}


def responses(target: Target) -> dict[str, Any]:
    fields = {"input": REQUESTS["question"], "max_output_tokens": MAX_TOKENS, "temperature": 0}
    response = litellm.responses(**options(target, "openai", **fields))
    texts = [part.text for item in response.output for part in getattr(item, "content", [])]
    counts = usage(response.usage.input_tokens, response.usage.output_tokens)
    return {"text": "".join(texts), "finish": response.status, "usage": counts}


def wrong_key(target: Target) -> dict[str, Any]:
    return answer(complete(target, api_key=WRONG_KEY))


def wrong_model(target: Target) -> dict[str, Any]:
    return answer(complete(target, model=f"hosted_vllm/{NO_MODEL}"))


def wrong_value(target: Target) -> dict[str, Any]:
    return answer(complete(target, temperature=-1))


def retry(target: Target) -> dict[str, Any]:
    # Its other strategy tries again at once.
    return answer(complete(target, num_retries=8, retry_strategy="exponential_backoff_retry"))


if __name__ == "__main__":
    serve(
        "litellm",
        {
            "chat": chat,
            "completions": completions,
            "stream": stream,
            "abort": abort,
            "structured output": structured,
            "JSON mode": json_mode,
            "tool named": tool({"type": "function", "function": {"name": "get_weather"}}),
            "tool required": tool("required"),
            "tool auto": tool("auto"),
            "tool result": tool_result,
            "embeddings": embeddings,
            "responses": responses,
            "wrong key": wrong_key,
            "wrong model": wrong_model,
            "wrong value": wrong_value,
            "full": chat,
            "retry": retry,
        },
    )
