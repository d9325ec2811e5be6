"""The clock of an event loop, for tests of time limits that are too long to wait for."""

from __future__ import annotations

import asyncio
from typing import Any


class LoopClock:
    """Lets the timers of the running event loop see `ahead_s` more than has passed.

    A limit of a minute then ends when a test says so, however slow the machine was before.
    """

    def __init__(self) -> None:
        self.ahead_s = 0.0
        loop: Any = asyncio.get_running_loop()
        real_time = loop.time
        loop.time = lambda: real_time() + self.ahead_s
