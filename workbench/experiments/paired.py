"""What became of two endpoints under the same load: pairs, doubts and notes, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workbench.claims.claim import evaluate_claim

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from workbench.claims.claim import Claim, Verdict, Where
    from workbench.metrics.summary import Summary
    from workbench.runs.run import Run

OURS, THEIRS = "ours", "theirs"


@dataclass(frozen=True)
class Measurement:
    """One side of one repeat: its summary, its run, and how its failed requests failed."""

    side: str
    repeat: int
    summary: Summary
    run: Run
    failures: tuple[str, ...] = ()
    ended_early: str | None = None


@dataclass
class PairedComparison:
    """What became of the repeats. `stats` is the opponent's own account at the end, if it has one.

    A repeat counts where both sides have it.
    """

    opponent: str
    measured: list[Measurement] = field(default_factory=list)
    stats: dict[str, Any] = field(default_factory=dict)
    broken: str | None = None

    def side(self, side: str) -> list[Measurement]:
        """One side's measurements, by repeat."""
        return sorted((m for m in self.measured if m.side == side), key=lambda m: m.repeat)

    def pairs(self, figure: str = "output_throughput") -> list[tuple[float, float]]:
        """(ours, theirs) of each repeat that both sides have; 0 where nothing was measured."""
        found = {
            side: {m.repeat: m.summary.figure(figure) or 0.0 for m in self.side(side)}
            for side in (OURS, THEIRS)
        }
        both = sorted(found[OURS].keys() & found[THEIRS].keys())
        return [(found[OURS][repeat], found[THEIRS][repeat]) for repeat in both]

    def doubts(self) -> list[str]:
        """Why the figures decide nothing; empty where they do."""
        found = [] if self.broken is None else [self.broken]
        limited = [m for m in self.measured if m.summary.client_health.client_limited]
        if limited:
            reasons = sorted({r for m in limited for r in m.summary.client_health.reasons})
            found.append(
                f"client limited in {len(limited)} of {len(self.measured)} measurements "
                f"({reasons[0]})"
            )
        for side, name in ((OURS, "vLLM"), (THEIRS, self.opponent)):
            failures = [reason for m in self.side(side) for reason in m.failures]
            if failures:
                found.append(f"{len(failures)} requests to {name} failed ({failures[0]})")
        return found

    def notes(self) -> list[str]:
        """What a reader of the figures should know."""
        return [
            f"{self.opponent} ran out of memory at batch size {one['batch_size']} with "
            f"{one['tokens_a_row']} tokens a row, and went on in halves"
            for one in self.stats.get("out_of_memory", [])
        ]

    def frame(self) -> pd.DataFrame:
        """A row a measurement."""
        import pandas as pd

        rows = [
            {
                "opponent": self.opponent,
                "repeat": m.repeat,
                "side": "vLLM" if m.side == OURS else self.opponent,
                "completed": m.summary.completed,
                "output tokens/s": m.summary.output_throughput,
                "p50 TTFT (ms)": m.summary.median_ttft_ms,
                "p50 TPOT (ms)": m.summary.median_tpot_ms,
                "seconds": m.summary.duration,
                "client": m.summary.client_health.verdict,
            }
            for m in sorted(self.measured, key=lambda m: m.repeat)
        ]
        return pd.DataFrame(rows)


def evaluate_claims(
    claim: Claim,
    contests: Sequence[PairedComparison],
    opponents: Sequence[str],
    *,
    where: Where,
    rng: np.random.Generator,
    figure: str = "output_throughput",
) -> list[Verdict]:
    """The verdict on `claim` against each contest's opponent, and on `opponents` without one.

    What was not measured is not decided, and stands in the table: a claim that leaves out its
    strongest opponent is none.
    """
    found = [
        evaluate_claim(
            claim,
            one.opponent,
            one.pairs(figure),
            where=where,
            rng=rng,
            doubts=one.doubts(),
            notes=one.notes(),
        )
        for one in contests
    ]
    held = {one.opponent for one in contests}
    absent = [one for one in opponents if one not in held]
    why = ["this baseline was not measured"]
    found += [evaluate_claim(claim, one, [], where=where, rng=rng, doubts=why) for one in absent]
    return found


def measurements_frame(contests: Sequence[PairedComparison]) -> pd.DataFrame:
    """A row a measurement, of all contests."""
    import pandas as pd

    frames = [one.frame() for one in contests]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
