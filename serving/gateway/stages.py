"""Where a request's time goes, by the server's clock, reported without disturbing clients.

Stages known before the first byte are in the standard ``Server-Timing`` header (W3C). A stream ends
with a comment line, which every reader of server-sent events skips; a whole answer has all its
stages in the header.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Awaitable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from serving.gateway.asgi import Message, Send

STAGES = (
    "authentication",
    "guardrail_in",
    "route",
    "queue",
    "prefill",
    "decode",
    "guardrail_out",
)
"""In the order in which a request passes them. A stream's ``guardrail_out`` overlaps ``decode``."""

TIMING_HEADER = "server-timing"
TIMING_COMMENT = ": stages "
"""Start of the line in a stream that has the stages as JSON, in milliseconds or null."""

_ENGINE_METRICS = {
    "queue": "queue_time_ms",
    "prefill": "time_to_first_token_ms",
    "decode": "generation_time_ms",
}
"""The names of these stages in vLLM's ``metrics`` of a request (``enable_per_request_metrics``).

vLLM's time to first token counts from when the engine began, after its queue.
"""


class StageTimings:
    """Milliseconds of one request in each stage; None for a stage it did not pass."""

    def __init__(self) -> None:
        self.ms: dict[str, float | None] = dict.fromkeys(STAGES)

    def add(self, stage: str, ms: float) -> None:
        """Add time to a stage, which a request may enter more than once."""
        self.ms[stage] = (self.ms[stage] or 0.0) + ms

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time spent inside the ``with`` block, also if it raises."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, (time.perf_counter() - started) * 1e3)

    def set_engine_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Set the engine's stages from vLLM's metrics of the request."""
        self.ms |= {stage: metrics.get(name) for stage, name in _ENGINE_METRICS.items()}

    def add_queue_time(self, first_ms: float, total_ms: float) -> None:
        """Count the wait for a replica as queue time too, in addition to the wait in its engine.

        Waiting is what remains of the time to the first packet without the prefill. On a busy
        machine that packet comes late, while the engine already decodes; decode time is left out
        so that no time is counted twice.

        Args:
            first_ms: Milliseconds from the call of the replica to its first packet.
            total_ms: Milliseconds from the same call to the engine's metrics.
        """
        prefill, decode = self.ms["prefill"], self.ms["decode"]
        if prefill is not None:
            self.ms["queue"] = max(0.0, min(first_ms, total_ms - (decode or 0.0)) - prefill)

    def to_header(self) -> str:
        """Return the value of the ``Server-Timing`` header: the stages passed so far."""
        passed = [(stage, ms) for stage, ms in self.ms.items() if ms is not None]
        return ", ".join(f"{stage};dur={ms:.3f}" for stage, ms in passed)

    def read_header(self, header: str) -> None:
        """Set the stages that a ``Server-Timing`` header contains."""
        for entry in header.split(","):
            name, _, rest = entry.strip().partition(";")
            duration = re.search(r"(?:^|;)\s*dur=([0-9.]+)\s*(?:;|$)", rest)
            if name in self.ms and duration:
                self.ms[name] = float(duration[1])

    def to_comment(self) -> str:
        """Return the comment that ends a stream, with the blank line that ends an event."""
        rounded = {stage: None if ms is None else round(ms, 3) for stage, ms in self.ms.items()}
        return f"{TIMING_COMMENT}{json.dumps(rounded)}\n\n"


def with_server_timing(send: Send, timings: StageTimings) -> Send:
    """Wrap ``send`` so that the response has the ``Server-Timing`` header."""

    def send_with_header(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            header = (TIMING_HEADER.encode(), timings.to_header().encode())
            message = {**message, "headers": [*message.get("headers", ()), header]}
        return send(message)

    return send_with_header
