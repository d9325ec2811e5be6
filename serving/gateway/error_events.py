"""Errors of a stream whose status is already sent: its last event reports them."""

from __future__ import annotations

import json
from typing import Any

from serving.gateway.asgi import ApiError, error_body
from serving.gateway.bodies.fields import Kind
from serving.gateway.metering import Meter


def error_event(kind: Kind, error: dict[str, Any]) -> bytes:
    """Return the event that ends a stream of this format.

    Args:
        kind: The format of the stream.
        error: The fields inside ``error`` of OpenAI's format.
    """
    if kind not in ("responses", "messages"):
        return f"data: {json.dumps({'error': error})}\n\n".encode()
    data: dict[str, Any] = {"type": "error", "error": error}
    if kind == "responses":
        # OpenAI's format has the fields at the top; its client raises for those in "error".
        flat = {name: error.get(name) for name in ("code", "message", "param")}
        data |= {**flat, "sequence_number": 0}
    return f"event: error\ndata: {json.dumps(data)}\n\n".encode()


def error_fields(body: bytes, status: int) -> dict[str, Any]:
    """Return the error in a response's body, or one that only reports the status."""
    try:
        error = json.loads(body)["error"]
        if isinstance(error, dict):
            return error
    except (ValueError, KeyError, TypeError):
        pass
    message = f"The request failed with status {status}. Try again later."
    fields: dict[str, Any] = error_body(message, "server_error", "internal_error")["error"]
    return fields


async def send_timeout(meter: Meter, kind: Kind, limit_s: float) -> None:
    """Report a timeout: as a status, or as a stream's last event once the status is sent."""
    message = f"The request was not answered within {limit_s:g} s."
    if meter.status is None:
        return await ApiError(504, message, "request_timeout", "timeout_error").send(meter.send)
    if meter.ended:
        return None
    event = b""
    if meter.streams:
        error = error_body(message, "timeout_error", "request_timeout")
        event = error_event(kind, error["error"])
    return await meter.send({"type": "http.response.body", "body": event})
