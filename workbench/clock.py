"""Clocks and event loops."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The loop that runs in this thread, if one does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


Clock = Callable[[], float]


def start_clock(now: Clock = time.perf_counter) -> Clock:
    """A clock that reads seconds since this call."""
    start = now()
    return lambda: now() - start
