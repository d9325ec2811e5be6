"""Whether the machine let this process run while a test measured a time in it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
MOST_S = 0.2
"""Total length of pauses that do not change the median of a measurement of one second."""
TICK_S = 0.01


class Stalls:
    """The seconds for which this process did not run within a `with` block, in `lost_s`.

    A thread that only sleeps measures them, so an event loop that is blocked is no stall.
    """

    def __init__(self) -> None:
        self.lost_s = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Stalls:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        last = time.perf_counter()
        ended = False
        while not ended:
            ended = self._ended.wait(TICK_S)
            now = time.perf_counter()
            if now - last > 3 * TICK_S:  # Any timer is a little late.
                self.lost_s += now - last - TICK_S
            last = now


def undisturbed(measure: Callable[[], T]) -> T:
    """Measure again while the machine pauses this process, five times at most.

    The last result is returned in any case, so a test judges it whatever the pauses were.
    """
    for _ in range(5):
        with Stalls() as stalls:
            result = measure()
        if stalls.lost_s < MOST_S:
            break
    return result
