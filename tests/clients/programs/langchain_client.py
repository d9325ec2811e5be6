"""The checks of LangChain's package for OpenAI."""

from __future__ import annotations

from typing import Any, Literal

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from protocol import (
    LONG_TOKENS,
    MAX_TOKENS,
    NO_MODEL,
    REQUESTS,
    TOOLS,
    WRONG_KEY,
    Target,
    serve,
    usage,
)
from pydantic import BaseModel, Field

QUESTION = REQUESTS["question"]


class Reply(BaseModel):
    """A reply."""

    kind: Literal["metric", "setting", "technique"]
    certain: bool
    note: str = Field(max_length=20)


def model(target: Target, **options: Any) -> ChatOpenAI:
    settings: dict[str, Any] = {
        "model": target.model,
        "api_key": target.api_key,
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
        "max_retries": 0,
        "timeout": 60,
    }
    return ChatOpenAI(base_url=target.base_url, **(settings | options))


def counts(message: Any) -> dict[str, Any]:
    used = message.usage_metadata
    return usage(used["input_tokens"], used["output_tokens"])


def answer(message: Any) -> dict[str, Any]:
    finish = message.response_metadata.get("finish_reason")
    return {"text": message.text, "finish": finish, "usage": counts(message)}


def chat(target: Target, **options: Any) -> dict[str, Any]:
    return answer(model(target, **options).invoke(QUESTION))


def completions(target: Target) -> dict[str, Any]:
    settings: dict[str, Any] = {"model": target.model, "api_key": target.api_key}
    llm = OpenAI(base_url=target.base_url, temperature=0, max_tokens=8, max_retries=0, **settings)
    result = llm.generate([REQUESTS["prompt"]])
    generation, used = result.generations[0][0], result.llm_output["token_usage"]
    return {
        "text": generation.text,
        "finish": generation.generation_info["finish_reason"],
        "usage": usage(used["prompt_tokens"], used["completion_tokens"]),
    }


def stream(target: Target, **options: Any) -> dict[str, Any]:
    pieces = list(model(target, stream_usage=True, **options).stream(QUESTION))
    whole = pieces[0]
    for piece in pieces[1:]:
        whole = whole + piece
    return answer(whole) | {"chunks": sum(bool(piece.text) for piece in pieces)}


def abort(target: Target) -> dict[str, Any]:
    options = {"max_tokens": LONG_TOKENS, "extra_body": {"ignore_eos": True}}
    pieces = model(target, **options).stream(QUESTION)
    read = [next(pieces) for _ in range(5)]
    pieces.close()
    return {"chunks": len(read)}


def structured(method: Any) -> Any:
    def check(target: Target) -> dict[str, Any]:
        chain = model(target, max_tokens=200).with_structured_output(Reply, method=method)
        return {"parsed": chain.invoke(QUESTION).model_dump()}

    return check


def json_mode(target: Target) -> dict[str, Any]:
    return answer(model(target).bind(**REQUESTS["json_mode"]).invoke(QUESTION))


def calls(message: Any) -> dict[str, Any]:
    return {"calls": [[c["name"], c["args"]] for c in message.tool_calls], "text": message.text}


def tool(choice: str) -> Any:
    def check(target: Target) -> dict[str, Any]:
        return calls(model(target).bind_tools(TOOLS, tool_choice=choice).invoke(QUESTION))

    return check


def tool_result(target: Target) -> dict[str, Any]:
    user, _, result = REQUESTS["tool_messages"]
    arguments = {"city": "Oslo", "unit": "celsius"}
    messages: list[BaseMessage] = [
        HumanMessage(user["content"]),
        AIMessage("", tool_calls=[{"name": "get_weather", "args": arguments, "id": "call_1"}]),
        ToolMessage(result["content"], tool_call_id="call_1"),
    ]
    return answer(model(target).bind_tools(TOOLS).invoke(messages))


def embeddings(target: Target) -> dict[str, Any]:
    settings: dict[str, Any] = {"model": target.model, "api_key": target.api_key}
    embedder = OpenAIEmbeddings(
        base_url=target.base_url, check_embedding_ctx_length=False, max_retries=0, **settings
    )
    return {"vectors": len(embedder.embed_documents(["a"]))}


def responses(target: Target) -> dict[str, Any]:
    message = model(target, use_responses_api=True).invoke(QUESTION)
    status = message.response_metadata.get("status")
    return {"text": message.text, "finish": status, "usage": counts(message)}


def wrong_key(target: Target) -> dict[str, Any]:
    return chat(target, api_key=WRONG_KEY)


def wrong_model(target: Target) -> dict[str, Any]:
    return chat(target, model=NO_MODEL)


def wrong_value(target: Target) -> dict[str, Any]:
    return chat(target, temperature=-1)


def retry(target: Target) -> dict[str, Any]:
    return chat(target, max_retries=8)


if __name__ == "__main__":
    serve(
        "langchain-openai",
        {
            "chat": chat,
            "completions": completions,
            "stream": stream,
            "abort": abort,
            "structured output": structured("json_schema"),
            "structured output by tool": structured("function_calling"),
            "JSON mode": json_mode,
            "tool named": tool("get_weather"),
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
