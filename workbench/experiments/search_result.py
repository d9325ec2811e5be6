"""What a search for the highest load found: its probes, its answer and what limited it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pandas as pd

    from workbench.metrics.summary import Summary

Phase = Literal["bracket", "bisect", "confirm"]

_FIGURES = ("slo_attainment", "request_goodput", "p95_ttft_ms", "p95_tpot_ms", "output_throughput")


@dataclass(frozen=True)
class ProbeResult:
    """One run of the probe: at which load, what for, and whether the SLO was met.

    One that the client limited is `replaced`: it counts for nothing, as the next probe repeats it.
    """

    rate: float
    phase: Phase
    met: bool
    summary: Summary
    replaced: bool = False


@dataclass(frozen=True)
class SearchResult:
    """What a search found, with every probe in the order they were run.

    `highest` is None where the SLO was missed even at the lowest load. `bounded` is False where no
    higher load missed it: it held at `high`, or `max_probes` came first. `confirmed` is how many
    confirmation runs at `highest` met the SLO. `unit` is that of the loads.
    """

    highest: float | None
    probes: tuple[ProbeResult, ...]
    bounded: bool
    confirmed: int
    unit: str = "requests/s"

    @property
    def counted(self) -> tuple[ProbeResult, ...]:
        """The probes without those that were replaced."""
        return tuple(p for p in self.probes if not p.replaced)

    @property
    def missed(self) -> float | None:
        """The lowest load above `highest` at which a probe missed the SLO, None without one."""
        floor = self.highest or 0
        return min((p.rate for p in self.counted if not p.met and p.rate > floor), default=None)

    @property
    def client_limited(self) -> bool:
        """Whether the client limited a probe that decided: one at `highest` or at `missed`."""
        deciding = [p for p in self.counted if p.rate in (self.highest, self.missed)]
        return any(p.summary.client_health.client_limited for p in deciding)

    def frame(self) -> pd.DataFrame:
        """A row a probe, in order: load, phase, verdicts and figures; `attrs["unit"]` is kept."""
        import pandas as pd

        rows = [
            {"rate": p.rate, "phase": p.phase, "met": p.met}
            | {name: p.summary.figure(name) for name in _FIGURES}
            | {"client_limited": p.summary.client_health.client_limited, "replaced": p.replaced}
            for p in self.probes
        ]
        table = pd.DataFrame(rows).astype(dict.fromkeys(_FIGURES, float))
        table.attrs["unit"] = self.unit
        return table

    def met_at_lowest(self) -> str:
        """What users met at the lowest load that was tried, in words: which bound is too near."""
        lowest = min(self.counted or self.probes, key=lambda probe: probe.rate)
        told = {n: lowest.summary.figure(f"p95_{n.lower()}_ms") for n in ("TTFT", "TPOT")}
        return ", ".join(
            f"{name} p95 {value:.4g} ms" if value is not None else f"no {name}"
            for name, value in told.items()
        )

    def headline(self) -> str:
        """The answer in one line."""
        limited = "CLIENT LIMITED: " if self.client_limited else ""
        number = f"{len(self.probes)} probe{'s' if len(self.probes) > 1 else ''}"
        if again := len(self.probes) - len(self.counted):
            number += f", {again} replaced as the client limited {'it' if again == 1 else 'them'}"
        if self.highest is None:
            lowest = min(p.rate for p in self.probes)
            at = f"{lowest:.4g} {self.unit}, the lowest ({self.met_at_lowest()}; {number})"
            return f"{limited}SLO missed even at {at}"
        runs = sum(p.rate == self.highest and p.phase == "confirm" for p in self.counted)
        sure = f"{self.confirmed} of {runs} confirmation runs met it" if runs else "not confirmed"
        open_end = "no miss was seen above it: give a higher limit or more probes"
        past = f"missed at {self.missed:.4g}" if self.bounded else open_end
        return f"{limited}SLO met up to {self.highest:.4g} {self.unit}, {past} ({sure}; {number})"
