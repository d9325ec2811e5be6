"""Successive halving: measure all configurations briefly, and the better ones for longer.

After Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter
Optimization" (AISTATS, 2016). Unlike there, the default stays until the end, so that every rung has
it for comparison, and the last rung has several configurations, so that the best has an opponent.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from workbench.errors import SettingError
from workbench.tuning.configurations import Configuration
from workbench.tuning.trial import Trial, best_first

RunTrial = Callable[[Configuration, int], Awaitable[Trial | None]]
"""Measures a configuration at a rung; returns None to end the search."""


@dataclass
class Rung:
    """The configurations of a rung, and the trials of those that were measured."""

    number: int
    configurations: tuple[Configuration, ...]
    trials: list[Trial] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every configuration was measured."""
        return len(self.trials) == len(self.configurations)


def rung_sizes(configurations: int, eta: int) -> list[int]:
    """Return the number of configurations at each rung, without a default that is kept.

    Each rung has 1/`eta` of the one before, rounded up. The last has at most `eta`.

    Raises:
        SettingError: `eta` is less than 2, or there is no configuration.
    """
    if eta < 2:
        raise SettingError(f"eta must be at least 2, got {eta}")
    if configurations < 1:
        raise SettingError(f"configurations must be at least 1, got {configurations}")
    sizes = [configurations]
    while sizes[-1] > eta:
        sizes.append(-(-sizes[-1] // eta))
    return sizes


async def successive_halving(
    configurations: Sequence[Configuration], *, eta: int, run_trial: RunTrial
) -> list[Rung]:
    """Run the rungs until the last, or until `run_trial` returns None or too few are left.

    Args:
        configurations: The default, and the others.
        eta: The share of a rung that goes on is 1/`eta`.
        run_trial: Measures a configuration at a rung.

    Returns:
        The rungs that were begun.
    """
    rungs: list[Rung] = []
    remaining = tuple(configurations)
    for number, size in enumerate(rung_sizes(len(configurations), eta)):
        if number:
            remaining = _survivors(rungs[-1], size, default=configurations[0])
            if len(remaining) < 2:
                break
        rung = Rung(number, remaining)
        rungs.append(rung)
        for configuration in remaining:
            trial = await run_trial(configuration, number)
            if trial is None:
                return rungs
            rung.trials.append(trial)
    return rungs


def _survivors(rung: Rung, size: int, default: Configuration) -> tuple[Configuration, ...]:
    """Return the best `size` configurations that started, and the default if it did.

    The configuration that was measured last is the first: it is still deployed.
    """
    started = [trial.configuration for trial in best_first(rung.trials) if trial.points]
    kept = started[:size]
    if default in started and default not in kept:
        kept.append(default)
    last = rung.trials[-1].configuration
    return tuple(sorted(kept, key=lambda configuration: configuration != last))
