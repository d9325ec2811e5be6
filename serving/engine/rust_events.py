"""The events of one stream of vLLM's Rust front end, as bytes.

Quotation marks are escaped inside a JSON string, so generated text cannot match these patterns.
"""

from __future__ import annotations

import json
import re

# A pattern that begins with fixed text is found four times as fast as one that does not.
_USAGE = re.compile(rb',"usage":\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}(?=\}(?:\n\n|$))')
# The last event, whose only content is the usage, has no choices.
_USAGE_OF_CHOICES = re.compile(rb'(?<!"choices":\[\])' + _USAGE.pattern)
_COUNTS = re.compile(rb'"prompt_tokens":(\d+),"total_tokens":\d+,"completion_tokens":(\d+)')
_USAGE_KEY = b'"usage":{'
_END = b"\n\n"
USAGE_EVENT = b'"choices":[],"usage":{'
"""A part of the last event before the end mark, which reports the usage of the whole answer."""


class EventStream:
    """Splits a stream into whole events, and removes the usage from all of them but the last.

    Args:
        prompt_tokens: The tokens of the prompt until an event reports them.
    """

    def __init__(self, prompt_tokens: int) -> None:
        self._prompt_tokens = prompt_tokens
        self._rest = b""
        self._counted = b""

    def add(self, data: bytes) -> bytes:
        """Return the whole events of the stream so far that were not returned before."""
        if self._rest:
            data, self._rest = self._rest + data, b""
        if not data.endswith(_END):
            data, end, self._rest = data.rpartition(_END)
            data += end
        if _USAGE_KEY not in data:  # an error, or the end mark
            return data
        self._counted = data
        return (_USAGE_OF_CHOICES if USAGE_EVENT in data else _USAGE).sub(b"", data)

    def count(self) -> tuple[int, int]:
        """Return the tokens of the prompt and of the answer so far."""
        counts = _COUNTS.findall(self._counted)
        if not counts:
            return self._prompt_tokens, 0
        prompt, output = counts[-1]
        return int(prompt), int(output)


def with_metrics(events: bytes, first_s: float, decode_s: float) -> bytes:
    """Add vLLM's ``metrics`` to the event with the usage, as its own server does.

    Args:
        events: Whole events, with :data:`USAGE_EVENT` in one of them.
        first_s: Seconds to the first token. The time in the engine's queue is not known, so it is
            a part of these.
        decode_s: Seconds from the first token to the last.
    """
    start = events.index(USAGE_EVENT)
    end = events.index(b"}" + _END, start)
    metrics = {
        "time_to_first_token_ms": round(first_s * 1e3, 3),
        "generation_time_ms": round(decode_s * 1e3, 3),
    }
    return b'%b,"metrics":%b%b' % (events[:end], json.dumps(metrics).encode(), events[end:])
