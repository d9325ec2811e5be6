"""Clocks and event loops."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

Clock = Callable[[], float]
"""Returns a time in seconds."""


def start_clock(now: Clock = time.perf_counter) -> Clock:
    """Return a clock that gives the seconds since this call."""
    start = now()
    return lambda: now() - start


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs in this thread, if any."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
