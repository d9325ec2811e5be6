"""The clocks of load workers on this machine and on others."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from workbench.clock import start_clock
from workbench.loadgen.worker import read_clock
from workbench.loadgen.workers import clock_epoch_s


class ClockWorker:
    """A worker whose clock runs `ahead_s` ahead, on this machine or on another."""

    def __init__(self, boot_id: str, ahead_s: float) -> None:
        self._boot_id, self._ahead_s = boot_id, ahead_s
        self.clock: Any = self
        self.calls = 0

    async def remote(self) -> tuple[str, float]:
        self.calls += 1
        if self.calls == 2:
            await asyncio.sleep(0.05)  # One slow answer: its reading must not be used.
        return self._boot_id, time.perf_counter() + self._ahead_s


def epoch(worker: ClockWorker) -> tuple[float, float]:
    """The zero of a new clock: as computed from the worker, and on this process's clock."""
    clock = start_clock()
    zero_s = time.perf_counter() - clock()
    return asyncio.run(clock_epoch_s(worker, clock)), zero_s


def test_worker_on_this_machine_has_the_same_clock() -> None:
    epoch_s, zero_s = epoch(ClockWorker(read_clock()[0], 0.0))
    assert epoch_s == pytest.approx(zero_s, abs=0.005)


@pytest.mark.parametrize("ahead_s", [1000.0, -500.0])
def test_offset_of_another_machines_clock(ahead_s: float) -> None:
    epoch_s, zero_s = epoch(ClockWorker("another boot", ahead_s))
    assert epoch_s - zero_s == pytest.approx(ahead_s, abs=0.005)
