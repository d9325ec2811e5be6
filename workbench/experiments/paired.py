"""Two endpoints under the same load: pairs, caveats, notes and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workbench.claims.claim import evaluate_claim
from workbench.errors import SettingError
from workbench.metrics.registry import metric_label

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from workbench.claims.claim import Claim, RunInfo, Verdict
    from workbench.metrics.summary import Summary
    from workbench.runs.run import Run

CANDIDATE, BASELINE = "candidate", "baseline"
_LATENCIES = ("p50_ttft_ms", "p50_tpot_ms")


@dataclass(frozen=True)
class Measurement:
    """One side of one repeat: its summary, its run, and the errors of its failed requests."""

    side: str
    repeat: int
    summary: Summary
    run: Run
    failures: tuple[str, ...] = ()
    ended_early: str | None = None


@dataclass
class PairedComparison:
    """The measurements of both sides. A repeat counts if both sides have it.

    Attributes:
        opponent: The baseline's name.
        measured: The measurements so far.
        stats: The counters of the baseline's engine, if it reports any.
        broken: Why the comparison ended early, if it did.
    """

    opponent: str
    measured: list[Measurement] = field(default_factory=list)
    stats: dict[str, Any] = field(default_factory=dict)
    broken: str | None = None

    def side(self, side: str) -> list[Measurement]:
        """Return one side's measurements, by repeat.

        Raises:
            SettingError: If `side` is neither "candidate" nor "baseline".
        """
        if side not in (CANDIDATE, BASELINE):
            raise SettingError(f"side must be {CANDIDATE!r} or {BASELINE!r}, got {side!r}")
        return sorted((m for m in self.measured if m.side == side), key=lambda m: m.repeat)

    def pairs(self, figure: str = "output_throughput") -> list[tuple[float, float]]:
        """Return (candidate, baseline) of each repeat that both have; 0 if nothing was measured."""
        values = {
            side: {m.repeat: m.summary.figure(figure) or 0.0 for m in self.side(side)}
            for side in (CANDIDATE, BASELINE)
        }
        both = sorted(values[CANDIDATE].keys() & values[BASELINE].keys())
        return [(values[CANDIDATE][repeat], values[BASELINE][repeat]) for repeat in both]

    def caveats(self) -> list[str]:
        """Return the reasons why the figures decide nothing, for `evaluate_claim`."""
        caveats = [] if self.broken is None else [self.broken]
        limited = [m for m in self.measured if m.summary.client_health.client_limited]
        if limited:
            reasons = sorted({r for m in limited for r in m.summary.client_health.reasons})
            caveats.append(
                f"client limited in {len(limited)} of {len(self.measured)} measurements "
                f"({reasons[0]})"
            )
        for side, name in ((CANDIDATE, "vLLM"), (BASELINE, self.opponent)):
            failures = [reason for m in self.side(side) for reason in m.failures]
            if failures:
                caveats.append(f"{len(failures)} requests to {name} failed ({failures[0]})")
        return caveats

    def notes(self) -> list[str]:
        """Return remarks for the reader of the figures."""
        return [
            f"{self.opponent} ran out of memory at batch size {event['batch_size']} with "
            f"{event['tokens_a_row']} tokens per row and continued with half-size batches"
            for event in self.stats.get("out_of_memory", [])
        ]

    def frame(self) -> pd.DataFrame:
        """Return one row per measurement."""
        import pandas as pd

        rows = [
            {
                "opponent": self.opponent,
                "repeat": m.repeat,
                "side": "vLLM" if m.side == CANDIDATE else self.opponent,
                "completed": m.summary.completed,
                "output tokens/s": m.summary.output_throughput,
                **{metric_label(figure): m.summary.figure(figure) for figure in _LATENCIES},
                "seconds": m.summary.duration,
                "client": m.summary.client_health.verdict,
            }
            for m in sorted(self.measured, key=lambda m: m.repeat)
        ]
        return pd.DataFrame(rows)


def evaluate_claims(
    claim: Claim,
    comparisons: Sequence[PairedComparison],
    opponents: Sequence[str],
    *,
    where: RunInfo,
    rng: np.random.Generator,
    figure: str = "output_throughput",
) -> list[Verdict]:
    """Return the verdict on `claim` against each comparison's opponent.

    Those of `opponents` that were not measured are listed as not decided: a claim that leaves out
    its strongest opponent is meaningless.
    """
    verdicts = [
        evaluate_claim(
            claim,
            comparison.opponent,
            comparison.pairs(figure),
            where=where,
            rng=rng,
            caveats=comparison.caveats(),
            notes=comparison.notes(),
        )
        for comparison in comparisons
    ]
    measured = {comparison.opponent for comparison in comparisons}
    caveats = ["this baseline was not measured"]
    return verdicts + [
        evaluate_claim(claim, opponent, [], where=where, rng=rng, caveats=caveats)
        for opponent in opponents
        if opponent not in measured
    ]


def measurements_frame(comparisons: Sequence[PairedComparison]) -> pd.DataFrame:
    """Return one row per measurement of all comparisons."""
    import pandas as pd

    frames = [comparison.frame() for comparison in comparisons]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
