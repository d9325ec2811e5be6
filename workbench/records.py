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
    Token counts are the server's own (`usage`).
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
