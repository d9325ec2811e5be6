"""How long the trials of a tuning take, from those so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from workbench.quantities import rough_duration

if TYPE_CHECKING:
    from workbench.tuning.trial import Trial


@dataclass
class Forecast:
    """The trials so far, and the number of configurations of each rung.

    The start of a deployment takes the same time in every rung, and loads grow by the factor `eta`.
    """

    sizes: Sequence[int]
    eta: int
    trials: list[Trial] = field(default_factory=list)

    def add(self, trial: Trial) -> None:
        """Take a finished trial into account."""
        self.trials.append(trial)

    def position(self, rung: int) -> str:
        """Return which rung and which trial comes next, such as "[rung 1 of 2, trial 3]"."""
        return f"[rung {rung + 1} of {len(self.sizes)}, trial {len(self.trials) + 1}]"

    def trial_s(self, rung: int) -> float | None:
        """Return the seconds of a trial in a rung, None if nothing is known yet."""
        measured = [trial for trial in self.trials if trial.points]
        if not measured:
            return None
        start_s = sum(trial.start_s for trial in measured) / len(measured)
        first_s = sum(trial.load_s / self._factor(trial.rung) for trial in measured) / len(measured)
        return start_s + first_s * self._factor(rung)

    def _factor(self, rung: int) -> float:
        return float(self.eta) ** rung

    def rest(self) -> str:
        """Return the time left in words, empty if nothing is known yet."""
        done = [sum(trial.rung == rung for trial in self.trials) for rung in range(len(self.sizes))]
        seconds = 0.0
        for rung, (size, finished) in enumerate(zip(self.sizes, done, strict=True)):
            one = self.trial_s(rung)
            if one is None:
                return ""
            seconds += one * max(0, size - finished)
        return f" (about {rough_duration(seconds)} left)"
