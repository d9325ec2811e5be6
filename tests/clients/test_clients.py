"""Other projects' clients against an endpoint of each path, each in an environment of its own.

A program in that environment uses the client and reports what it returned or raised; nothing of
this project runs there. `make test-clients` installs the environments.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from clients.judge import JUDGES, REQUESTS, Observed
from support.client_endpoints import Served, engine_metric
from support.client_programs import ClientProgram

# The first test waits for both deployments.
pytestmark = [pytest.mark.engine, pytest.mark.clients, pytest.mark.timeout(600)]

ERRORS = ("wrong key", "wrong model", "wrong value", "full", "retry")
TOOLS = ("tool named", "tool required", "tool auto", "tool result")
CHAT = ("chat", "completions", "stream", "abort", "structured output", "JSON mode", *TOOLS)
ROUTES = ("embeddings", "responses")
OPENAI = ("models", *CHAT, "concurrent", "tool stream", *ROUTES, "responses stream", *ERRORS)
CHECKS: dict[str, tuple[str, ...]] = {
    "openai": OPENAI,
    "javascript": OPENAI,
    "litellm": (*CHAT, *ROUTES, *ERRORS),
    "langchain": (*CHAT, "structured output by tool", *ROUTES, *ERRORS),
    "instructor": (
        "structured output",
        "structured output by tool",
        "structured output stream",
        *ERRORS,
    ),
    "anthropic": (
        "messages",
        "bearer key",
        "messages stream",
        "token count",
        "abort",
        *TOOLS,
        *ERRORS,
    ),
}
METERED = (
    "chat",
    "completions",
    "stream",
    "responses",
    "responses stream",
    "messages",
    "messages stream",
)
PATHS = ("direct", "composed")
CASES = [
    pytest.param(client, check, path, id=f"{client}-{check.replace(' ', '-')}-{path}")
    for client, checks in CHECKS.items()
    for path in PATHS
    for check in checks
]
STOP_S = 60
MIN_ABORTED_TOKENS = 1
RETRY_AFTER_S = 1.0


@pytest.mark.parametrize(("client", "check", "path"), CASES)
def test_client(
    client: str,
    check: str,
    path: str,
    programs: Callable[[str], ClientProgram],
    served: dict[str, Served],
) -> None:
    program, endpoint = programs(client), served[path]
    if check == "abort":
        return judge_abort(program, endpoint)
    if check == "full":
        with endpoint.full():
            return JUDGES["full"](run(program, check, endpoint))
    if check == "retry":
        return judge_retry(program, endpoint, client)
    if check not in METERED:
        return JUDGES[check](run(program, check, endpoint))
    before = endpoint.settled()
    observed = run(program, check, endpoint)
    JUDGES[check](observed)
    return judge_metering(endpoint, before, observed["usage"])


def run(program: ClientProgram, check: str, endpoint: Served) -> Observed:
    program.start(check, endpoint.target)
    return program.answer()


def judge_metering(endpoint: Served, before: dict[str, int], used: dict[str, int]) -> None:
    """The counts of the client's key equal the usage that the client received."""
    expected = {"requests": 1, "prompt_tokens": used["prompt_tokens"]}
    expected["output_tokens"] = used["completion_tokens"]
    assert endpoint.wait_for_count(before, **expected) == expected


def judge_abort(program: ClientProgram, endpoint: Served) -> None:
    """The engine stops, by its own count of tokens, long before the end of the answer."""
    before = engine_metric("generation_tokens")
    JUDGES["abort"](run(program, "abort", endpoint))
    deadline = time.monotonic() + STOP_S
    tokens, running = 0.0, 1.0
    # The nodes export both figures once per second, or later on a busy machine.
    while running or tokens < MIN_ABORTED_TOKENS:
        assert time.monotonic() < deadline, f"after {STOP_S} s the engine still runs the request"
        time.sleep(0.5)
        running = engine_metric("num_requests_running")
        tokens = engine_metric("generation_tokens") - before
    assert tokens < REQUESTS["long_tokens"], "the engine generated the whole answer"


def judge_retry(program: ClientProgram, endpoint: Served, client: str) -> None:
    """The client is shed, waits as Retry-After says, tries again and is answered."""
    before = endpoint.settled()  # an earlier check was shed too
    with endpoint.full() as stop:
        started = time.monotonic()
        program.start("retry", endpoint.target)
        release = threading.Thread(target=release_after_shed, args=(endpoint, before, stop))
        release.start()
        observed = program.answer()
        release.join()
    first = {"instructor": "structured output", "anthropic": "messages"}.get(client, "chat")
    JUDGES[first](observed)
    assert endpoint.counted()["shed"] > before["shed"], "the client was not shed"
    assert time.monotonic() - started >= RETRY_AFTER_S


def release_after_shed(endpoint: Served, before: dict[str, int], stop: threading.Event) -> None:
    """End the requests that fill the service, once the client has been shed."""
    deadline = time.monotonic() + 60
    while endpoint.counted()["shed"] == before["shed"] and time.monotonic() < deadline:
        time.sleep(0.1)
    stop.set()
