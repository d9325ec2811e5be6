"""Linear equations for the constants of the engine's steps, from the requests of a run.

A request that has its first token gets one token per step. The tokens of all requests between its
first and its last token are therefore the sum of the batches of these steps, and the lengths of the
requests at these tokens are the sum of what the steps found in the KV cache. Together with the
prompts that were read meanwhile, they give one equation per request, without any assumption about
when a step began.

A time to first token gives a second equation, if no other prompt was read meanwhile: the front end,
on average half of the step in progress, and the steps that read the prompt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.records import ReplicaSample

if TYPE_CHECKING:
    from workbench.records import RequestRecord
    from workbench.runs.run import Run
    from workbench.whatif.state import Floats

CONSTANTS = (
    *("step_s", "prefill_token_s", "running_s", "kv_token_s"),
    *("request_s", "prompt_token_s", "token_s"),
)
"""The columns of the equations."""

UNKNOWN_PHASE = 0.1
"""Weight of a time to first token that includes an unknown part of the step in progress."""


@dataclass(frozen=True)
class Observations:
    """Equations: `rows @ constants = seconds`, and how much the relative error of each counts."""

    rows: Floats
    seconds: Floats
    weights: Floats

    @classmethod
    def joined(cls, parts: Sequence[Observations]) -> Observations:
        """Return the equations of several replicas together."""
        return cls(
            np.concatenate([part.rows for part in parts]),
            np.concatenate([part.seconds for part in parts]),
            np.concatenate([part.weights for part in parts]),
        )


class _Replica:
    """The completed requests of one replica as arrays, and sums over them up to any time."""

    def __init__(self, records: Sequence[RequestRecord]) -> None:
        times = [np.asarray(record.token_times_s, float) for record in records]
        self.sent = np.array([record.sent_s for record in records], float)
        self.first = np.array([own[0] for own in times])
        self.last = np.array([own[-1] for own in times])
        self.prompt = np.array([record.prompt_tokens for record in records], float)
        self.output = np.array([record.output_tokens for record in records], float)
        # An event may carry several tokens, each of which took a step.
        steps = [
            np.linspace(0, output - 1, len(own))
            for own, output in zip(times, self.output, strict=True)
        ]
        weights = np.concatenate([np.diff(own, prepend=-1) for own in steps])
        lengths = np.concatenate(
            [prompt + own - 1 for prompt, own in zip(self.prompt, steps, strict=True)]
        )
        firsts = np.concatenate([own == 0 for own in steps])
        at = np.concatenate(times)
        self.tokens = _Sums(at, weights)
        self.cached = _Sums(at, np.where(firsts, 0, weights * lengths))
        self.read = _Sums(self.first, self.prompt)
        self.began = _Sums(self.first, np.ones(len(times)))
        self.ended = _Sums(self.last, np.ones(len(times)))
        self.gone = _Sums(self.last, self.prompt + self.output)


class _Sums:
    """The sum of the values up to a time, the time included."""

    def __init__(self, at: Floats, values: Floats) -> None:
        order = np.argsort(at, kind="stable")
        self._at, self._sums = at[order], np.concatenate([[0.0], np.cumsum(values[order])])

    def until(self, times: Floats) -> Floats:
        total: Floats = self._sums[np.searchsorted(self._at, times, side="right")]
        return total

    def before(self, times: Floats) -> Floats:
        total: Floats = self._sums[np.searchsorted(self._at, times, side="left")]
        return total

    def between(self, after: Floats, until: Floats) -> Floats:
        return self.until(until) - self.until(after)


def observe(records: Sequence[RequestRecord], budget: int) -> Observations:
    """Return the equations of the completed requests of one replica.

    Args:
        records: Completed requests with the times of their tokens.
        budget: Tokens that a step may process.
    """
    replica = _Replica(records)
    return Observations.joined([_decodes(replica), _first_tokens(replica, budget)])


def _decodes(replica: _Replica) -> Observations:
    first, last = replica.first, replica.last
    batch_at_first = replica.began.until(first) - replica.ended.before(first)
    batch_at_last = replica.began.until(last) - replica.ended.before(last)
    rows = np.column_stack(
        [
            replica.output - 1,
            replica.read.between(first, last),
            replica.tokens.between(first, last),
            replica.cached.between(first, last),
            np.zeros(len(first)),
            np.zeros(len(first)),
            batch_at_last - batch_at_first,
        ]
    )
    useful = (replica.output > 1) & (last > first)
    return Observations(rows[useful], (last - first)[useful], np.ones(useful.sum()))


def _first_tokens(replica: _Replica, budget: int) -> Observations:
    sent, prompt, first = replica.sent, replica.prompt, replica.first
    batch = replica.began.until(sent) - replica.ended.until(sent)
    cached = replica.read.until(sent) + replica.tokens.until(sent) - replica.gone.until(sent)
    parts = np.ceil(prompt / budget)
    own = budget * parts * (parts - 1) / 2  # what the parts before it have left in the cache
    half = np.where(batch > 0, 0.5, 0.0)
    rows = np.column_stack(
        [
            half + parts,
            prompt,
            half * batch + parts * (batch + 1),
            (half + parts) * cached + own,
            np.ones(len(sent)),
            prompt,
            batch + 1,
        ]
    )
    useful = _alone(sent, first) & (first > sent)
    weights = np.where(batch > 0, UNKNOWN_PHASE, 1.0)
    return Observations(rows[useful], (first - sent)[useful], weights[useful])


def _alone(sent: Floats, first: Floats) -> Any:
    """Return whether no other request waited for its first token at the same time."""
    others = np.searchsorted(np.sort(sent), first, side="right")
    answered = np.searchsorted(np.sort(first), sent, side="left")
    return others - answered == 1


def starts_and_stops(runs: Sequence[Run]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return how long replicas were seen starting and stopping, to the interval of telemetry."""
    starts, stops = [], []
    for run in runs:
        seen: dict[str, dict[str | None, list[float]]] = defaultdict(lambda: defaultdict(list))
        for sample in run.samples():
            if isinstance(sample, ReplicaSample):
                seen[sample.replica][sample.state].append(sample.time_s)
        for states in seen.values():
            if states["starting"] and states["running"]:
                starts.append(min(states["running"]) - min(states["starting"]))
            if states["stopping"]:
                stops.append(max(states["stopping"]) - min(states["stopping"]))
    return tuple(starts), tuple(stops)
