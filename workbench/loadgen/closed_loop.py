"""Users who each wait for an answer before they send the next request."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from workbench.clock import Clock
from workbench.errors import SettingError
from workbench.loadgen.client import ChatInput, OnRecord, stream_chat, without_retries
from workbench.records import RequestRecord

if TYPE_CHECKING:
    from openai import AsyncOpenAI


async def closed_loop(
    client: AsyncOpenAI,
    *,
    model: str,
    prompts: Sequence[ChatInput],
    max_tokens: int | Sequence[int],
    concurrency: int,
    clock: Clock,
    on_record: OnRecord | None = None,
    **call: Any,
) -> list[RequestRecord]:
    """Send `prompts` as chats, at most `concurrency` at a time.

    With at least as many users as prompts, all start at once. `scheduled_s` of a record is when its
    user became free. If the loop is cancelled or interrupted, `on_record` has received every
    record, including those of the cut requests (`cancelled`), and the cancellation is raised.

    Args:
        client: The OpenAI client.
        model: The name of the model.
        prompts: The chats.
        max_tokens: Maximum number of output tokens, for all or for each.
        concurrency: Number of users.
        clock: The clock of the records, in seconds.
        on_record: Called with each record.
        call: Passed to `stream_chat`.

    Returns:
        The records in the order in which the requests ended.

    Raises:
        SettingError: `concurrency` is below 1.
    """
    if concurrency < 1:
        raise SettingError(f"concurrency must be at least 1, got {concurrency}")
    limits = [max_tokens] * len(prompts) if isinstance(max_tokens, int) else max_tokens
    pending = iter(list(zip(prompts, limits, strict=True)))
    client = without_retries(client)
    records: list[RequestRecord] = []

    def keep(record: RequestRecord) -> None:
        records.append(record)
        if on_record is not None:
            on_record(record)

    async def user(free_s: float) -> None:
        for messages, limit in pending:
            timing: dict[str, Any] = {"clock": clock, "scheduled_s": free_s, "on_record": keep}
            await stream_chat(
                client, model=model, messages=messages, max_tokens=limit, **timing | call
            )
            free_s = clock()

    start = clock()
    await _run_together([user(start) for _ in range(min(concurrency, len(prompts)))])
    return records


async def _run_together(coroutines: Sequence[Any]) -> None:
    """Run coroutines concurrently. The first exception cancels the others and is raised itself."""
    try:
        async with asyncio.TaskGroup() as group:
            for coroutine in coroutines:
                group.create_task(coroutine)
    except BaseExceptionGroup as problems:
        raise problems.exceptions[0] from None
