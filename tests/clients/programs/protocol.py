"""How a program answers the test that runs it; it uses the standard library only.

The test writes one line of JSON per check: its name, and the endpoint to use. The program answers
with one line: what the client returned, or the exception that it raised. The test judges it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

REQUESTS: Any = json.loads((Path(__file__).parent / "requests.json").read_text())
MESSAGES, TOOLS, TOOL_MESSAGES = (REQUESTS[key] for key in ("messages", "tools", "tool_messages"))
MAX_TOKENS, LONG_TOKENS = REQUESTS["max_tokens"], REQUESTS["long_tokens"]
WRONG_KEY = "sk-wrong-wrong-wrong-wrong"
NO_MODEL = "no-such-model"

Check = Callable[["Target"], dict[str, Any]]


@dataclass(frozen=True)
class Target:
    """The endpoint: its URL with and without /v1, the key, and the name of the model."""

    base_url: str
    root_url: str
    api_key: str
    model: str


def usage(prompt_tokens: Any, completion_tokens: Any) -> dict[str, Any]:
    """Return token counts as the test reads them."""
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}


def serve(package: str, checks: dict[str, Check]) -> None:
    """Answer the checks that the standard input names, until it ends.

    Args:
        package: Distribution of the client, whose version is reported first.
        checks: What to do for each check.
    """
    # Libraries print; the answers have the original standard output to themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps({"version": version(package)}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        observed = observe(checks[request["check"]], Target(**request["target"]))
        print(json.dumps(observed), file=answers, flush=True)


def observe(check: Check, target: Target) -> dict[str, Any]:
    """Return what a check returned, or the exception that it raised."""
    try:
        return check(target)
    except Exception as error:
        return {"error": describe(error)}


def describe(error: BaseException) -> dict[str, Any]:
    """Return an exception's classes and the HTTP response that it carries."""
    body = getattr(error, "body", None)
    details = body.get("error", body) if isinstance(body, dict) else {}
    response = getattr(error, "response", None)
    headers = dict(getattr(response, "headers", None) or {})
    headers |= dict(getattr(error, "litellm_response_headers", None) or {})
    return {
        "classes": [kind.__name__ for kind in type(error).__mro__],
        "status": getattr(error, "status_code", None),
        "code": getattr(error, "code", None) or (details or {}).get("code"),
        "message": str(error)[:2000],
        "retry_after": headers.get("retry-after"),
    }


def answer(completion: Any) -> dict[str, Any]:
    """Return the text, the end and the usage of a chat completion or completion."""
    choice, used = completion.choices[0], completion.usage
    text = choice.message.content if hasattr(choice, "message") else choice.text
    counts = usage(used.prompt_tokens, used.completion_tokens)
    return {"text": text, "finish": choice.finish_reason, "usage": counts}


def calls(completion: Any) -> dict[str, Any]:
    """Return the tool calls and the text of a chat completion."""
    message = completion.choices[0].message
    functions = [call.function for call in message.tool_calls or []]
    return {"calls": [[f.name, f.arguments] for f in functions], "text": message.content}
