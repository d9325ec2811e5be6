"""What is kept of one request: the line that every figure is computed from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "error", "shed", "timeout", "cancelled"]


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """What the client saw of one request. Times are seconds on the run's clock; absent is None.

    `scheduled_s` is when it should have been sent, `sent_s` when it was (before the request is
    built, as in `vllm bench serve`), `token_times_s` the arrival of every token event, the first
    included, and `end_s` the arrival of the last event before `[DONE]`, or when it failed.
    `model` is the one that answered, where a router chose and said so. Token counts are the
    server's own (`usage`), as is `stages`: milliseconds in each stage of its work (authentication,
    guardrail_in, route, queue, prefill, decode, guardrail_out), where told.
    `replica` is the one that answered, by Serve's replica id; None where no answer says so.
    """

    request_id: str
    scheduled_s: float | None
    sent_s: float | None
    first_token_s: float | None
    end_s: float | None
    token_times_s: tuple[float, ...]
    prompt_tokens: int | None
    output_tokens: int | None
    status: Status
    error: str | None
    model: str | None
    tenant: str | None
    stages: dict[str, float | None] | None = None
    replica: str | None = None
