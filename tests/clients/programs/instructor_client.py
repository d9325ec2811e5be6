"""The checks of Instructor, around OpenAI's client."""

from __future__ import annotations

from typing import Any, Literal

import instructor
import openai
from instructor.core import InstructorRetryException
from protocol import MESSAGES, NO_MODEL, WRONG_KEY, Target, serve
from pydantic import BaseModel, Field


class Reply(BaseModel):
    kind: Literal["metric", "setting", "technique"]
    certain: bool
    note: str = Field(max_length=20)


def create(target: Target, mode: instructor.Mode, method: str = "create", **fields: Any) -> Any:
    settings: dict[str, Any] = {
        "api_key": fields.pop("api_key", target.api_key),
        "max_retries": fields.pop("client_retries", 0),
        "timeout": 60,
    }
    plain = openai.OpenAI(base_url=target.base_url, **settings)
    defaults: dict[str, Any] = {
        "model": target.model,
        "messages": MESSAGES,
        "response_model": Reply,
        "max_tokens": 200,
        "temperature": 0,
        "max_retries": 0,
    }
    client = instructor.from_openai(plain, mode=mode)
    return getattr(client.chat.completions, method)(**(defaults | fields))


def structured(mode: instructor.Mode, **fields: Any) -> Any:
    def check(target: Target, **more: Any) -> dict[str, Any]:
        return {"parsed": create(target, mode, **fields, **more).model_dump()}

    return check


def partial(target: Target) -> dict[str, Any]:
    """The same object, streamed; the last one is whole."""
    replies = list(create(target, instructor.Mode.TOOLS, "create_partial"))
    return {"parsed": replies[-1].model_dump(), "chunks": len(replies)}


TOOLS = structured(instructor.Mode.TOOLS)


def cause(check: Any, **fields: Any) -> Any:
    """Return a check that raises the client's exception, which Instructor wraps in its own."""

    def raising(target: Target) -> Any:
        try:
            return check(target, **fields)
        except InstructorRetryException as error:
            source: BaseException | None = error
            while source is not None and not isinstance(source, openai.APIError):
                source = source.__cause__
            raise source or error from None

    return raising


if __name__ == "__main__":
    serve(
        "instructor",
        {
            "structured output": structured(instructor.Mode.JSON_SCHEMA),
            "structured output by tool": TOOLS,
            "structured output stream": partial,
            "wrong key": cause(TOOLS, api_key=WRONG_KEY),
            "wrong model": cause(TOOLS, model=NO_MODEL),
            "wrong value": cause(TOOLS, temperature=-1),
            "full": cause(TOOLS),
            "retry": structured(instructor.Mode.TOOLS, client_retries=8),
        },
    )
