"""Send one streaming request through the OpenAI client, timed at the socket.

While an answer streams, only one timestamp per network read is taken. The bytes are parsed when the
request has ended, so that parsing one answer does not delay the timestamps of others. Events that
arrive in one read share its time.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from serving.gateway.asgi import MODEL_HEADER, REPLICA_HEADER, SESSION_HEADER
from serving.gateway.stages import TIMING_HEADER
from workbench.clock import Clock
from workbench.loadgen.outcome import ends_request, redact_error
from workbench.loadgen.sse import (
    answer_note,
    answer_status,
    cached_tokens,
    parse_answer,
    stage_times,
)
from workbench.records import RequestRecord

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from openai import AsyncAPIResponse, AsyncOpenAI

    from workbench.endpoints.connection import Connection

ChatInput = str | Sequence[Mapping[str, Any]]
OnRecord = Callable[[RequestRecord], None]
OnEvent = Callable[[Literal["sent", "read"], float], None]


async def stream_chat(
    client: AsyncOpenAI,
    *,
    model: str,
    messages: ChatInput,
    max_tokens: int | None,
    clock: Clock,
    ignore_eos: bool = False,
    temperature: float = 0.0,
    extra_body: Mapping[str, Any] | None = None,
    renamed: Mapping[str, str | None] | None = None,
    **timing: Any,
) -> RequestRecord:
    """Send one streaming chat completion.

    A failure of the server becomes the record's status: `shed` for HTTP 429 and 503, and `error`
    for other errors, for a connection or a stream that breaks, and for a stream that ends before
    the model finished. A complete stream without `[DONE]`, or with empty events, gets a `note`.
    Nothing is retried. A mistake in the call itself is raised.

    Args:
        client: The OpenAI client.
        model: The name of the model.
        messages: The messages of the chat. A string is one user message.
        max_tokens: Maximum number of output tokens.
        clock: The clock of the record, in seconds.
        ignore_eos: Generate `max_tokens` tokens in any case.
        temperature: Sampling temperature.
        extra_body: Further fields of the request.
        renamed: Other names of parameters that the server rejects; None leaves one out.
        timing: `scheduled_s`; `request_id` (also sent, as `x-request-id`); `tenant`; `timeout_s`,
            for the whole call, instead of the client's own limits; `on_event(kind, at_s)`, called
            with `sent` or `read` while other requests stream, so it must be fast; and
            `on_record(record)`, called with every record, even that of a cancelled call, which
            then raises `CancelledError`; `connection`, for errors of TLS and of the proxy; and
            `session`, sent as `x-session-id`.

    Returns:
        The record of the request.
    """
    chat = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    fields = make_body(model, max_tokens, temperature, ignore_eos, extra_body)
    body = {"messages": chat} | rename(fields, renamed)
    create = without_retries(client).chat.completions.with_streaming_response.create
    return await _call(create, body, client.api_key, clock=clock, **timing)


async def stream_completion(
    client: AsyncOpenAI,
    *,
    model: str,
    prompt: str | Sequence[int],
    max_tokens: int | None,
    clock: Clock,
    ignore_eos: bool = False,
    temperature: float = 0.0,
    extra_body: Mapping[str, Any] | None = None,
    renamed: Mapping[str, str | None] | None = None,
    **timing: Any,
) -> RequestRecord:
    """Send one streaming completion of a text or of token ids; otherwise as `stream_chat`."""
    fields = make_body(model, max_tokens, temperature, ignore_eos, extra_body)
    body = {"prompt": prompt} | rename(fields, renamed)
    create = without_retries(client).completions.with_streaming_response.create
    return await _call(create, body, client.api_key, clock=clock, **timing)


def without_retries(client: AsyncOpenAI) -> AsyncOpenAI:
    """Return `client` without retries."""
    return client if client.max_retries == 0 else client.with_options(max_retries=0)


def make_body(
    model: str,
    max_tokens: int | None,
    temperature: float,
    ignore_eos: bool,
    extra_body: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the body of a request without its prompt; fields unknown to OpenAI in `extra_body`."""
    extra = {"ignore_eos": True} if ignore_eos else {}
    body: dict[str, Any] = {"model": model, "temperature": temperature, "stream": True}
    body["stream_options"] = {"include_usage": True}
    body["extra_body"] = extra | dict(extra_body or {})
    return body if max_tokens is None else body | {"max_tokens": max_tokens}


def rename(body: dict[str, Any], renamed: Mapping[str, str | None] | None) -> dict[str, Any]:
    """Return the body with parameters renamed, or left out where the new name is None."""
    if not renamed:
        return body
    changed = {name: renamed.get(name, name) for name in (*body, *body["extra_body"])}
    fields = {changed[name]: value for name, value in body.items() if name != "extra_body"}
    extra = {changed[name]: value for name, value in body["extra_body"].items()}
    fields.pop(None, None)
    extra.pop(None, None)
    return fields | {"extra_body": extra}


def bypass_client_validation(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same request with everything long in `extra_body`, which wins over arguments.

    The OpenAI client inspects every element of its arguments, at some 10 us per token id.
    """
    required: dict[str, Any] = {"messages": []} if "messages" in body else {"prompt": ""}
    rest = {name: value for name, value in body.items() if name not in {"model", "extra_body"}}
    extra = rest | dict(body["extra_body"])
    return {"model": body["model"], "stream": True, **required, "extra_body": extra}


async def _call(
    create: Callable[..., AbstractAsyncContextManager[AsyncAPIResponse[Any]]],
    body: Mapping[str, Any],
    api_key: str,
    *,
    clock: Clock,
    scheduled_s: float | None = None,
    request_id: str | None = None,
    tenant: str | None = None,
    timeout_s: float | None = None,
    on_record: OnRecord | None = None,
    on_event: OnEvent | None = None,
    connection: Connection | None = None,
    session: str | None = None,
) -> RequestRecord:
    request_id = request_id or uuid.uuid4().hex
    reads: list[tuple[float, bytes]] = []
    sent = clock()
    if on_event is not None:
        on_event("sent", sent)
    # The client's own limits (5 s for a connection) would cut a request that may take longer.
    limit = {} if timeout_s is None else {"timeout": timeout_s}
    arguments = bypass_client_validation(body)
    identity = {"x-request-id": request_id}
    if session is not None:
        identity[SESSION_HEADER] = session
    call = create(**arguments, extra_headers=identity, **limit)
    headers: dict[str, str] = {}
    failure = await _read(call, reads, headers, clock, timeout_s, on_event)
    stopped, answer = clock(), parse_answer(reads)
    proxy = None if connection is None else connection.proxy_name
    status, error = answer_status(answer, failure, proxy)
    if error is not None:
        secrets = [api_key, *(connection.secrets() if connection is not None else ())]
        error = redact_error(error, body.get("messages", body.get("prompt")), secrets)
    record = RequestRecord(
        request_id=request_id,
        scheduled_s=scheduled_s,
        sent_s=sent,
        first_token_s=next(iter(answer.token_times), None),
        end_s=answer.last_event_s if status == "ok" else stopped,
        token_times_s=tuple(answer.token_times),
        prompt_tokens=answer.usage.get("prompt_tokens"),
        output_tokens=answer.usage.get("completion_tokens"),
        status=status,
        error=error,
        model=headers.get(MODEL_HEADER, body["model"]),
        tenant=tenant,
        replica=headers.get(REPLICA_HEADER),
        stages=stage_times(answer, headers.get(TIMING_HEADER)),
        cached_tokens=cached_tokens(answer.usage),
        note=answer_note(answer) if status == "ok" else None,
    )
    if on_record is not None:
        on_record(record)
    if isinstance(failure, asyncio.CancelledError):
        raise failure
    return record


async def _read(
    call: AbstractAsyncContextManager[AsyncAPIResponse[Any]],
    reads: list[tuple[float, bytes]],
    headers: dict[str, str],
    clock: Clock,
    timeout_s: float | None,
    on_event: OnEvent | None,
) -> BaseException | None:
    """Send the request, and add each read with its time to `reads`.

    The headers of the answer, if one began, are added to `headers`.

    Returns:
        What ended the request early, if anything did.
    """
    try:
        async with asyncio.timeout(timeout_s), call as response:
            headers.update(response.headers)
            async for data in response.http_response.aiter_bytes():
                reads.append((clock(), data))
                if on_event is not None:
                    on_event("read", reads[-1][0])
    except (Exception, asyncio.CancelledError) as problem:
        if not ends_request(problem):
            raise
        headers.update(getattr(getattr(problem, "response", None), "headers", {}))
        return problem
    return None
