"""The result of a tuning: the best configuration, what cannot be told from it, and the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.analysis.paired_ratio import compare_figure
from workbench.analysis.pareto import frontier_points
from workbench.metrics.bootstrap import Interval
from workbench.quantities import significant
from workbench.tuning.configurations import Configuration, shown_value
from workbench.tuning.halving import Rung
from workbench.tuning.trial import GOODPUT, Score, Trial, best_first, overlap

if TYPE_CHECKING:
    import pandas as pd

    from workbench.metrics.summary import Summary

FIGURES = ("slo_attainment", "p95_ttft_ms", "p95_tpot_ms")
CONFIDENCE = 0.95


@dataclass(frozen=True)
class TuningResult:
    """The rungs of a tuning. The answer is that of the last complete rung.

    Attributes:
        rungs: The rungs that were begun, with their trials.
        complete: Whether the last rung that successive halving plans was measured.
        unit: The unit of the loads, such as "requests/s".
        gpus: Number of GPUs of the deployment, None on a CPU.
        seed: Seed of the bootstrap.
        left_out: Messages about values that the platform does not support.
    """

    rungs: tuple[Rung, ...]
    complete: bool
    unit: str
    gpus: int | None = None
    seed: int = 0
    left_out: tuple[str, ...] = ()

    @property
    def default(self) -> Configuration:
        """The configuration that the others are compared with."""
        return self.rungs[0].configurations[0]

    @property
    def best(self) -> Configuration | None:
        """The configuration with the highest goodput, None if none was measured."""
        ranked = self._answering()
        return ranked[0].configuration if ranked else None

    @property
    def summary(self) -> Summary | None:
        """The summary of the best configuration: that of the repeat with the median goodput."""
        score = next((trial.score() for trial in self._answering()), None)
        return None if score is None else _middle(score.summaries, GOODPUT)

    @property
    def tied(self) -> list[Configuration]:
        """Configurations whose intervals of goodput overlap with that of the best.

        A configuration is compared with the best in the last rung that measured both. Where one of
        them met the SLO and the other did not, that distinguishes them.
        """
        best = self.best
        if best is None:
            return []
        others = [trial for trial in self.last_trials() if trial.configuration != best]
        return [trial.configuration for trial in others if self._overlaps(trial, best)]

    def _overlaps(self, trial: Trial, best: Configuration) -> bool:
        pairs = (
            (self._score(trial.configuration, rung.number), self._score(best, rung.number))
            for rung in reversed(self.rungs)
        )
        for mine, theirs in pairs:
            if mine is not None and theirs is not None:
                same = mine.slo_met == theirs.slo_met
                return same and overlap(self._interval(mine), self._interval(theirs))
        return False

    def _answering(self) -> list[Trial]:
        """Return the measured trials of the last complete rung, best first.

        If not even the first rung is complete, its trials so far.
        """
        complete = [rung for rung in self.rungs if rung.complete and _measured(rung)]
        rung = complete[-1] if complete else self.rungs[0]
        return [trial for trial in best_first(rung.trials) if trial.points]

    def last_trials(self) -> list[Trial]:
        """Return the last trial of each configuration: those of later rungs first, best first."""
        best = self.best
        seen: dict[str, Trial] = {}
        for rung in reversed(self.rungs):
            for trial in best_first(rung.trials):
                seen.setdefault(str(trial.configuration), trial)
        trials = [trial for trial in seen.values() if trial.points]
        trials += [trial for trial in seen.values() if not trial.points]
        return sorted(trials, key=lambda trial: trial.configuration != best)

    def _score(self, configuration: Configuration, rung: int) -> Score | None:
        for trial in self.rungs[rung].trials:
            if trial.configuration == configuration:
                return trial.score()
        return None

    def _interval(self, score: Score) -> Interval:
        return score.interval(np.random.default_rng(self.seed))

    def frame(self) -> pd.DataFrame:
        """Return a row per configuration, best first.

        Returns:
            The settings; `rung`, from 1; `load`, at which goodput was highest; `goodput` in
            requests/s with `low` and `high`; `slo_met`; the figures in `FIGURES`; `ratio`, the
            goodput over that of the default in the same rung, with `ratio_low` and `ratio_high`;
            `verdict` on that ratio; and `note`.
        """
        import pandas as pd

        tied = self.tied
        rows = [self._row(trial, tied) for trial in self.last_trials()]
        return pd.DataFrame(rows)

    def _row(self, trial: Trial, tied: list[Configuration]) -> dict[str, Any]:
        settings = trial.configuration.settings.items()
        row: dict[str, Any] = {name: shown_value(value) for name, value in settings}
        row["rung"] = trial.rung + 1
        score = trial.score()
        if score is not None:
            interval = self._interval(score)
            row |= {"load": score.load, "goodput": interval.estimate}
            row |= {"low": interval.low, "high": interval.high, "slo_met": score.slo_met}
            row |= {name: _mean(score, name) for name in FIGURES}
            row |= self._difference(trial, score)
        row["note"] = "; ".join(self._notes(trial, score, tied))
        return row

    def _difference(self, trial: Trial, score: Score) -> dict[str, Any]:
        """Compare the goodput with that of the default in the same rung, repeat by repeat."""
        base = self._score(self.default, trial.rung)
        if base is None:
            return {"verdict": "the default was not measured"}
        if trial.configuration == self.default:
            return {"ratio": 1.0, "verdict": "the default"}
        rng = np.random.default_rng(self.seed)
        compared = compare_figure(
            GOODPUT, base.summaries, score.summaries, rng=rng, confidence=CONFIDENCE
        )
        lost = base.slo_met and not score.slo_met
        return {
            "ratio": compared.ratio,
            "ratio_low": compared.low,
            "ratio_high": compared.high,
            "verdict": "misses the SLO" if lost else compared.verdict,
        }

    def _notes(self, trial: Trial, score: Score | None, tied: list[Configuration]) -> list[str]:
        notes = []
        if trial.failure is not None:
            notes.append(f"failed: {trial.failure}")
        if trial.configuration in tied:
            notes.append("not distinguishable from the best")
        if score is not None and score.client_limited:
            notes.append("client limited")
        return notes

    def frontier(self) -> pd.DataFrame:
        """Return a point per configuration and load, for `workbench.figures.frontier`.

        Each is the repeat with the median output throughput, in the configuration's last rung.
        """
        summaries, groups = [], []
        for trial in self.last_trials():
            for load in trial.loads:
                summaries.append(_middle(trial.at(load), "output_throughput"))
                groups.append(str(trial.configuration))
        return frontier_points(summaries, gpus=self.gpus, groups=groups)

    def headline(self) -> str:
        """Return the answer in one line."""
        ranked = self._answering()
        if not ranked:
            reasons = [trial.failure for rung in self.rungs for trial in rung.trials]
            return f"no configuration was measured ({reasons[0] if reasons else 'no time'})"
        score = ranked[0].score()
        assert score is not None
        interval = self._interval(score)
        texts = [
            f"{ranked[0].configuration}: {significant(interval.estimate)} requests/s within the "
            f"SLO, from {significant(interval.low)} to {significant(interval.high)}"
        ]
        if score.load is not None:
            texts[0] += f", at {score.load:g} {self.unit}"
        if not score.slo_met:
            texts.append("no load met the SLO in most repeats")
        if tied := self.tied:
            texts.append(f"not distinguishable from it: {' | '.join(map(str, tied))}")
        if not self.complete:
            texts.append("the budget ended before the last rung; call again to continue")
        return "; ".join(texts)


def _middle(summaries: Sequence[Summary], figure: str) -> Summary:
    """Return the summary with the median of a figure."""
    ordered = sorted(summaries, key=lambda summary: summary.figure(figure) or 0.0)
    return ordered[len(ordered) // 2]


def _measured(rung: Rung) -> bool:
    return any(trial.points for trial in rung.trials)


def _mean(score: Score, name: str) -> float | None:
    values = [summary.figure(name) for summary in score.summaries]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
