"""Request records made by hand."""

from __future__ import annotations

from typing import Any

from workbench.records import RequestRecord


def record(sent: float | None = 0.0, *token_times: float, **fields: Any) -> RequestRecord:
    """Return a successful request that ends with its last token, unless `fields` say otherwise."""
    defaults = {
        "request_id": "r",
        "scheduled_s": None,
        "sent_s": sent,
        "first_token_s": token_times[0] if token_times else None,
        "end_s": token_times[-1] if token_times else sent,
        "token_times_s": tuple(token_times),
        "prompt_tokens": 10,
        "output_tokens": len(token_times),
        "status": "ok",
        "error": None,
        "model": "m",
        "tenant": None,
    }
    return RequestRecord(**(defaults | fields))


def failed(status: str, sent: float = 0.0, end: float = 1.0, **fields: Any) -> RequestRecord:
    """Return a request that failed with `status`."""
    absent = {"prompt_tokens": None, "output_tokens": None, "end_s": end, "error": "X: y"}
    return record(sent, status=status, **(absent | fields))
