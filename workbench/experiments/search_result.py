"""The result of a search for the highest load: its probes, its answer and what limited it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from workbench.metrics.registry import compared_figures, get_latency

if TYPE_CHECKING:
    import pandas as pd

    from workbench.metrics.summary import Summary

Phase = Literal["bracket", "bisect", "confirm"]

_FIGURES = ("slo_attainment", "request_goodput", *compared_figures("p95"), "output_throughput")


@dataclass(frozen=True)
class ProbeResult:
    """One run of the probe: its load, its phase, and whether the SLO was met.

    A probe that the client limited is `replaced`: the next probe repeats it, and it does not count.
    """

    rate: float
    phase: Phase
    met: bool
    summary: Summary
    replaced: bool = False


@dataclass(frozen=True)
class SearchResult:
    """The answer of a search, with every probe in the order in which they ran.

    Attributes:
        highest: The highest load that met the SLO; None if even the lowest missed it.
        probes: All probes.
        bounded: False if no higher load missed the SLO: it was met at the upper limit, or the
            number of probes ran out first.
        confirmed: Number of confirmation runs at `highest` that met the SLO.
        unit: The unit of the loads.
    """

    highest: float | None
    probes: tuple[ProbeResult, ...]
    bounded: bool
    confirmed: int
    unit: str = "requests/s"

    @property
    def counted(self) -> tuple[ProbeResult, ...]:
        """The probes that were not replaced."""
        return tuple(p for p in self.probes if not p.replaced)

    @property
    def missed(self) -> float | None:
        """The lowest load above `highest` at which a probe missed the SLO, None without one."""
        floor = self.highest or 0
        return min((p.rate for p in self.counted if not p.met and p.rate > floor), default=None)

    @property
    def client_limited(self) -> bool:
        """Whether the client limited a deciding probe: one at `highest` or at `missed`."""
        deciding = [p for p in self.counted if p.rate in (self.highest, self.missed)]
        return any(p.summary.client_health.client_limited for p in deciding)

    def frame(self) -> pd.DataFrame:
        """Return load, phase, verdicts and figures, one row per probe; the unit is in `attrs`."""
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

    def lowest_load_latencies(self) -> str:
        """Return the p95 TTFT and TPOT at the lowest load that was tried, in words.

        If that load missed the SLO, they show which bound is too tight.
        """
        lowest = min(self.counted or self.probes, key=lambda probe: probe.rate)
        values = {
            metric.label: lowest.summary.figure(f"p95_{metric.key}")
            for metric in (get_latency("ttft"), get_latency("tpot"))
        }
        return ", ".join(
            f"{label} p95 {value:.4g} ms" if value is not None else f"no {label}"
            for label, value in values.items()
        )

    def headline(self) -> str:
        """Return the answer in one line."""
        limited = "CLIENT LIMITED: " if self.client_limited else ""
        return f"{limited}{self._missed_everywhere() if self.highest is None else self._answer()}"

    def _answer(self) -> str:
        runs = sum(p.rate == self.highest and p.phase == "confirm" for p in self.counted)
        confirmed = (
            f"{self.confirmed} of {runs} confirmation runs met it" if runs else "not confirmed"
        )
        open_end = "no higher load missed it: raise the limit or allow more probes"
        above = f"missed at {self.missed:.4g}" if self.bounded else open_end
        answer = f"SLO met up to {self.highest:.4g} {self.unit}"
        return f"{answer}, {above} ({confirmed}; {self._number_of_probes()})"

    def _missed_everywhere(self) -> str:
        lowest = min(p.rate for p in self.probes)
        details = f"{self.lowest_load_latencies()}; {self._number_of_probes()}"
        return f"SLO missed even at the lowest load, {lowest:.4g} {self.unit} ({details})"

    def _number_of_probes(self) -> str:
        number = f"{len(self.probes)} probe{'s' if len(self.probes) > 1 else ''}"
        replaced = len(self.probes) - len(self.counted)
        if not replaced:
            return number
        limited = "it" if replaced == 1 else "them"
        return f"{number}, {replaced} replaced because the client limited {limited}"
