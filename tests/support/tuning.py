"""Configurations whose goodput is known, and trials made from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from support.records import record

from workbench.metrics.slo import SLO
from workbench.metrics.summary import Summary, summarize
from workbench.tuning.configurations import Configuration
from workbench.tuning.trial import Point, Trial

BOUNDS = SLO(e2el_ms=1000, target=0.9)


def configuration(number: int) -> Configuration:
    return Configuration(settings={"max_num_seqs": number})


@cache
def summary(good: int, bad: int = 0) -> Summary:
    """Return the summary of a load of 1 s with `good` requests within the SLO."""
    records = [record(0.0, 0.25, 0.5)] * good + [record(0.0, 1.0, 2.0)] * bad
    return summarize(records, slo=BOUNDS, duration_s=1.0)


@dataclass
class Measured:
    """A measure function whose truth is known: a goodput for each value of max_num_seqs.

    Attributes:
        goodput: The mean goodput in requests/s; None: it does not start.
        spread: How far the first and the last of three repeats are from it.
        misses: The values with which most requests miss the SLO.
        calls: What was measured, as (value, rung).
        interrupt_at: Number of calls after which the process is interrupted.
    """

    goodput: Mapping[int, int | None]
    spread: int = 1
    misses: frozenset[int] = frozenset()
    calls: list[tuple[int, int]] = field(default_factory=list)
    interrupt_at: int | None = None
    now_s: float = 0.0

    async def __call__(self, configuration: Configuration, rung: int) -> Trial:
        if len(self.calls) == self.interrupt_at:
            raise KeyboardInterrupt
        value = configuration.settings["max_num_seqs"]
        self.calls.append((value, rung))
        load_s = 6.0 * 3**rung
        self.now_s += 10.0 + load_s
        fields = {"configuration": configuration, "rung": rung, "start_s": 10.0}
        mean = self.goodput[value]
        if mean is None:
            return Trial(**fields, failure="the engine reported: no memory")
        bad = mean if value in self.misses else 0
        points = tuple(
            Point(load=8.0, repeat=repeat, summary=summary(mean + self.spread * (repeat - 1), bad))
            for repeat in range(3)
        )
        return Trial(**fields, points=points, load_s=load_s)

    def clock(self) -> float:
        return self.now_s
