"""Users who each wait for an answer before they send the next request."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from workbench.clock import Clock
from workbench.errors import SettingError
from workbench.loadgen.client import OnRecord, Prompt, stream_chat, without_retries
from workbench.records import RequestRecord

if TYPE_CHECKING:
    from openai import AsyncOpenAI


async def closed_loop(
    client: AsyncOpenAI,
    *,
    model: str,
    prompts: Sequence[Prompt],
    max_tokens: int | Sequence[int],
    concurrency: int,
    clock: Clock,
    on_record: OnRecord | None = None,
    **call: Any,
) -> list[RequestRecord]:
    """Send `prompts` as chats, at most `concurrency` at once; records in the order they ended.

    With at least as many slots as prompts, all start at once. `scheduled_s` is when a slot became
    free. If the loop is cancelled or interrupted, `on_record` has had every record, those of the
    cut requests (`cancelled`) included, and the cancellation goes on. `call` goes to `stream_chat`.
    """
    if concurrency < 1:
        raise SettingError(f"concurrency is {concurrency}: give at least 1")
    limits = [max_tokens] * len(prompts) if isinstance(max_tokens, int) else max_tokens
    work = iter(list(zip(prompts, limits, strict=True)))
    once = without_retries(client)
    records: list[RequestRecord] = []

    def keep(record: RequestRecord) -> None:
        records.append(record)
        if on_record is not None:
            on_record(record)

    async def slot(free_s: float) -> None:
        for messages, limit in work:
            timing: dict[str, Any] = {
                "clock": clock,
                "scheduled_s": free_s,
                "on_record": keep,
            } | call
            await stream_chat(once, model=model, messages=messages, max_tokens=limit, **timing)
            free_s = clock()

    start = clock()
    await _together([slot(start) for _ in range(min(concurrency, len(prompts)))])
    return records


async def _together(coroutines: Sequence[Any]) -> None:
    """Run them at once. The first exception cancels the rest and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            for coroutine in coroutines:
                group.create_task(coroutine)
    except BaseExceptionGroup as problems:
        raise problems.exceptions[0] from None
