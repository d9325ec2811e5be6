"""Where a request's time goes, by this server's clock: told to clients without disturbing them.

What is known before the first byte stands in the standard ``Server-Timing`` header (W3C). A stream
ends with a comment line, which every reader of server-sent events skips; a whole answer has it all
in the header.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
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
"""In the order of a request's way. ``guardrail_out`` of a stream runs while the model decodes."""

HEADER = "server-timing"
COMMENT = ": stages "
"""Begins the line in a stream that holds the stages as JSON, milliseconds or null."""

_ENGINE = {
    "queue": "queue_time_ms",
    "prefill": "time_to_first_token_ms",
    "decode": "generation_time_ms",
}
"""What vLLM's ``metrics`` of a request (``enable_per_request_metrics``) call our stages.

Its time to the first token counts from when the engine began, after its queue.
"""


class StageTimings:
    """The milliseconds of one request in each stage; a stage it did not pass is None."""

    def __init__(self) -> None:
        self.ms: dict[str, float | None] = dict.fromkeys(STAGES)

    def add(self, stage: str, ms: float) -> None:
        """Add to a stage, which a request may enter more than once."""
        self.ms[stage] = (self.ms[stage] or 0.0) + ms

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time inside, whichever way it ends."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, (time.perf_counter() - began) * 1e3)

    def engine(self, metrics: Mapping[str, Any]) -> None:
        """Take over what the engine says."""
        self.ms |= {stage: metrics.get(name) for stage, name in _ENGINE.items()}

    def waited(self, first_ms: float, all_ms: float) -> None:
        """Count the wait for a replica as queue too, beside the wait in its engine.

        From the call of the replica the first that came back took ``first_ms``, the engine's
        account ``all_ms``. What of the first was no prefill was waiting; but on a busy machine it
        comes late, while the engine decodes already, and no time is counted twice.
        """
        prefill, decode = self.ms["prefill"], self.ms["decode"]
        if prefill is not None:
            self.ms["queue"] = max(0.0, min(first_ms, all_ms - (decode or 0.0)) - prefill)

    def header(self) -> str:
        """The value of the ``Server-Timing`` header: the stages passed so far."""
        known = [(name, ms) for name, ms in self.ms.items() if ms is not None]
        return ", ".join(f"{name};dur={ms:.3f}" for name, ms in known)

    def read(self, header: str) -> None:
        """Take over what a ``Server-Timing`` header says of our stages."""
        for entry in header.split(","):
            name, _, rest = entry.strip().partition(";")
            duration = re.search(r"(?:^|;)\s*dur=([0-9.]+)\s*(?:;|$)", rest)
            if name in self.ms and duration:
                self.ms[name] = float(duration[1])

    def comment(self) -> str:
        """The line that ends a stream, with the blank line that ends an event."""
        short = {n: None if ms is None else round(ms, 3) for n, ms in self.ms.items()}
        return f"{COMMENT}{json.dumps(short)}\n\n"


def timed(send: Send, stages: StageTimings) -> Send:
    """Add the ``Server-Timing`` header to whatever is answered."""

    async def told(message: Message) -> None:
        if message["type"] == "http.response.start":
            field = (HEADER.encode(), stages.header().encode())
            message = {**message, "headers": [*message.get("headers", ()), field]}
        await send(message)

    return told
