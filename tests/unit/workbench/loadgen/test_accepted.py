"""Parameters that a server rejects are probed once, then renamed or left out."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from support import scripted_server as scripted
from support.scripted_server import DONE, Script, Step, tokens

from workbench.endpoints.remote import Remote, remote
from workbench.loadgen.accepted import adapt_calls
from workbench.loadgen.senders import WorkerConfig
from workbench.loadgen.worker import LoadWorker
from workbench.workload.prompt import Prompt
from workbench.workload.spec import Arrival, LoadSpec

CHAT = ({"role": "user", "content": "Hello"},)
TEXT = "Hello"
ACCEPTED = Script(steps=(Step(DONE),))


def openai_error(param: str | None, message: str) -> Script:
    body = {"error": {"message": message, "type": "invalid_request_error", "param": param}}
    return Script(status=400, body=json.dumps(body).encode())


def reasoning_model(body: dict[str, Any], n: int = 0) -> Script:
    """Answer as OpenAI's API answers for a reasoning model."""
    if "max_tokens" in body:
        return openai_error(
            "max_tokens",
            "Unsupported parameter: 'max_tokens' is not supported with this model. "
            "Use 'max_completion_tokens' instead.",
        )
    if body.get("temperature", 1) != 1:
        return openai_error(
            "temperature", "Unsupported value: 'temperature' does not support 0 with this model."
        )
    if "ignore_eos" in body:
        return openai_error(None, "Unrecognized request argument supplied: ignore_eos")
    return ACCEPTED


def strict_server(body: dict[str, Any], n: int = 0) -> Script:
    """Answer as FastAPI answers for a model that forbids further fields."""
    extra = [name for name in ("ignore_eos", "stream_options") if name in body]
    if not extra:
        return ACCEPTED
    details = [
        {"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted"}
        for name in extra
    ]
    return Script(status=422, body=json.dumps({"detail": details}).encode())


def target_of(server: scripted.ScriptedServer, **options: Any) -> Remote:
    return remote(server.base_url, model="m", tokenizer="tiny", api_key="sk-test", **options)


def sent_by_load(endpoint: Remote, load: LoadSpec, content: Any) -> tuple[str, ...]:
    """Send one request as the runner does; return the notes."""
    calls = adapt_calls(endpoint, load, [content])

    async def go() -> None:
        worker = LoadWorker()
        await worker.connect(endpoint.connection)
        call = {"temperature": load.temperature, "ignore_eos": load.ignore_eos}
        config = WorkerConfig(
            model="m",
            call=call | {"extra_body": endpoint.extra_body},
            tag="t",
            epoch_s=0.0,
            start_s=0.0,
            chat_call=calls.chat,
            completion_call=calls.completion,
        )
        await worker.start(config, [(0, Arrival(0.0, (Prompt(content, 1, 3),)))])
        while not (await worker.report()).done:
            await asyncio.sleep(0.01)

    asyncio.run(go())
    return calls.notes


def test_reasoning_model() -> None:
    load = LoadSpec(count=1, ignore_eos=True)
    with scripted.threaded(lambda body, n: reasoning_model(body)) as server:
        server.answer_probe = reasoning_model
        endpoint = target_of(server, extra_body={"reasoning_effort": "low"})
        notes = sent_by_load(endpoint, load, CHAT)
        assert notes == (
            f"{server.base_url} rejects max_tokens: max_completion_tokens is sent instead",
            f"{server.base_url} rejects temperature: it is left out",
            f"{server.base_url} rejects ignore_eos: it is left out",
        )
        assert len(server.probes) == 4
        assert sent_by_load(endpoint, load, CHAT) == notes
        assert len(server.probes) == 4, "the server is asked once"
        for exchange in server.log:
            assert exchange.body == {
                "model": "m",
                "messages": list(CHAT),
                "max_completion_tokens": 3,
                "stream": True,
                "stream_options": {"include_usage": True},
                "reasoning_effort": "low",
            }


def test_errors_of_fastapi() -> None:
    with scripted.threaded(tokens(3, chat=False)) as server:
        server.answer_probe = strict_server
        notes = sent_by_load(target_of(server), LoadSpec(count=1), TEXT)
        assert [note.split(" rejects ")[1] for note in notes] == [
            "ignore_eos: it is left out",
            "stream_options: it is left out, so token counts are missing",
        ]
        [sent] = server.log
        assert not {"ignore_eos", "stream_options"} & set(sent.body)
        assert sent.body["max_tokens"] == 3


@pytest.mark.parametrize(
    ("content", "load", "expected"),
    [
        (CHAT, LoadSpec(count=1), None),
        (CHAT, LoadSpec(count=1, ignore_eos=True), True),
        (TEXT, LoadSpec(count=1), True),
        ((1, 2), LoadSpec(count=1), True),
        (TEXT, LoadSpec(count=1, ignore_eos=False), None),
    ],
)
def test_ignore_eos_is_off_for_chats_unless_it_is_set(
    content: Any, load: LoadSpec, expected: bool | None
) -> None:
    with scripted.threaded(tokens(3, chat=content is CHAT)) as server:
        assert sent_by_load(target_of(server), load, content) == ()
        assert [exchange.body.get("ignore_eos") for exchange in server.log] == [expected]


def test_endpoint_of_this_process_is_not_asked() -> None:
    with scripted.threaded(tokens(3)) as server:
        endpoint = target_of(server)
        endpoint.ours = True
        sent_by_load(endpoint, LoadSpec(count=1), CHAT)
        assert server.probes == []
        assert server.log[0].body["ignore_eos"] is True


@pytest.mark.parametrize(
    "answer",
    [
        scripted.error(401, "max_tokens"),
        scripted.error(429, "max_tokens"),
        scripted.error(500, "max_tokens"),
        Script(status=400, body=b"max_tokens"),
        openai_error("messages", "the list is too short"),
        openai_error(None, "n must be 1"),
    ],
)
def test_other_rejections_change_nothing(answer: Script) -> None:
    with scripted.threaded(tokens(3)) as server:
        server.answer_probe = lambda body, n: answer
        assert sent_by_load(target_of(server), LoadSpec(count=1), CHAT) == ()
        assert server.log[0].body["max_tokens"] == 3
        assert len(server.probes) == 1


def test_users_own_fields_are_never_left_out() -> None:
    with scripted.threaded(tokens(3)) as server:
        server.answer_probe = lambda body, n: openai_error("temperature", "no")
        endpoint = target_of(server, extra_body={"temperature": 0.5})
        assert sent_by_load(endpoint, LoadSpec(count=1), CHAT) == ()
        assert server.log[0].body["temperature"] == 0.5
