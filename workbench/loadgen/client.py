"""One streamed call through the OpenAI client, timed at the socket, as a `RequestRecord`.

What happens while an answer streams is one timestamp a network read; the bytes are parsed when the
request has ended, so that reading one answer does not delay the timestamps of the others. Events
that arrive in one read share its time.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from serving.gateway.asgi import MODEL_HEADER, REPLICA_HEADER
from serving.gateway.stages import TIMING_HEADER
from workbench.clock import Clock
from workbench.loadgen.outcome import ends_request, redact_error
from workbench.loadgen.sse import outcome, parse, stages
from workbench.records import RequestRecord

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from openai import AsyncAPIResponse, AsyncOpenAI

Prompt = str | Sequence[Mapping[str, Any]]
OnRecord = Callable[[RequestRecord], None]
OnEvent = Callable[[Literal["sent", "read"], float], None]


async def stream_chat(
    client: AsyncOpenAI,
    *,
    model: str,
    messages: Prompt,
    max_tokens: int | None,
    clock: Clock,
    ignore_eos: bool = False,
    temperature: float = 0.0,
    extra_body: Mapping[str, Any] | None = None,
    **timing: Any,
) -> RequestRecord:
    """One streamed chat completion. A string is one user message.

    How the server fails becomes the record's status: HTTP 429 and 503 are `shed`; other errors,
    a connection or stream that breaks, and a stream without `[DONE]` are `error`; nothing is
    retried. A mistake in the call itself is raised.

    `timing`: `scheduled_s`, `request_id` (also sent, as `x-request-id`), `tenant`, `timeout_s`
    (for the whole call, instead of the client's own limits), `on_event(kind, at_s)` (`sent` or
    `read`, called while others stream: keep it quick) and `on_record(record)`, called with every
    record, also that of a cancelled call, which then raises `CancelledError`.
    """
    chat = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    body = {"messages": chat} | _body(model, max_tokens, temperature, ignore_eos, extra_body)
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
    **timing: Any,
) -> RequestRecord:
    """One streamed completion of a text or of token ids; otherwise as `stream_chat`."""
    body = {"prompt": prompt} | _body(model, max_tokens, temperature, ignore_eos, extra_body)
    create = without_retries(client).completions.with_streaming_response.create
    return await _call(create, body, client.api_key, clock=clock, **timing)


def without_retries(client: AsyncOpenAI) -> AsyncOpenAI:
    return client if client.max_retries == 0 else client.with_options(max_retries=0)


def _body(
    model: str,
    max_tokens: int | None,
    temperature: float,
    ignore_eos: bool,
    extra_body: Mapping[str, Any] | None,
) -> dict[str, Any]:
    extra = {"ignore_eos": True} if ignore_eos else {}
    body: dict[str, Any] = {"model": model, "temperature": temperature, "stream": True}
    body["stream_options"] = {"include_usage": True}
    body["extra_body"] = extra | dict(extra_body or {})
    return body if max_tokens is None else body | {"max_tokens": max_tokens}


def _slim(body: Mapping[str, Any]) -> dict[str, Any]:
    """The same request with all that may be long in `extra_body`, which wins over the arguments.

    The OpenAI client looks at every element of its arguments, at some 10 us for each token id.
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
) -> RequestRecord:
    request_id = request_id or uuid.uuid4().hex
    reads: list[tuple[float, bytes]] = []
    sent = clock()
    if on_event is not None:
        on_event("sent", sent)
    # The client's own limits (5 s for a connection) would cut a request that has longer.
    limit = {} if timeout_s is None else {"timeout": timeout_s}
    call = create(**_slim(body), extra_headers={"x-request-id": request_id}, **limit)
    headers: dict[str, str] = {}
    failure = await _read(call, reads, headers, clock, timeout_s, on_event)
    stopped, answer = clock(), parse(reads)
    status, error = outcome(answer, failure)
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
        error=error and redact_error(error, body.get("messages", body.get("prompt")), api_key),
        model=headers.get(MODEL_HEADER, body["model"]),
        tenant=tenant,
        replica=headers.get(REPLICA_HEADER),
        stages=stages(answer, headers.get(TIMING_HEADER)),
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
    """Send, and note each read and its time in `reads`; what ended the request too early, if so.

    `headers` gets those of the answer, if one began.
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
