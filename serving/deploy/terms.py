"""When a service stops by itself, and what a replica of it costs. Pure.

A service stops when its lease ends, or when it has had no request for a given time. A warning
precedes both. Times are seconds on the clock of the process that applies the terms, so that the
clocks of a cluster and of a notebook need not agree.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Literal

from pydantic import Field

from serving.errors import SpecError
from serving.spec.base import Strict, shown

MAX_MINUTES = 525_600
"""A year."""
WARNING_S = 300.0
"""Seconds between a warning and the stop. A period of less than twice that warns at its half."""

Reason = Literal["lease", "idle"]


class Terms(Strict):
    """The terms of one deployment of a service."""

    id: str = Field(
        default_factory=lambda: secrets.token_hex(8), description="Identifies the deployment."
    )
    lease_minutes: float | None = Field(None, description="Minutes until the service stops.")
    idle_minutes: float | None = Field(
        None, description="Minutes without a request after which the service stops."
    )
    dollars_per_replica_hour: dict[str, float] = Field(
        default_factory=dict, description="$ per replica-hour, by deployment."
    )

    @property
    def limited(self) -> bool:
        """Whether the service stops by itself."""
        return self.lease_minutes is not None or self.idle_minutes is not None

    def periods_s(self) -> dict[Reason, float]:
        """Return the length of each period that ends the service, in seconds."""
        minutes: dict[Reason, float | None] = {
            "lease": self.lease_minutes,
            "idle": self.idle_minutes,
        }
        return {reason: value * 60 for reason, value in minutes.items() if value is not None}


def check_minutes(name: str, value: Any) -> None:
    """Check an argument with a number of minutes, or None.

    Raises:
        SpecError: It is not a number of minutes above 0 and up to a year.
    """
    if value is None:
        return
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not 0 < value <= MAX_MINUTES:
        raise SpecError(
            f"{name} must be a number of minutes above 0 and up to {MAX_MINUTES}, got "
            f"{shown(value)}; leave it out for a service without that limit"
        )


@dataclass(frozen=True)
class TermsState:
    """How far a service is in its terms.

    Attributes:
        terms_id: The terms' ``id``.
        began_at: When the service was first seen under these terms.
        used_at: When it was last in use. It counts as in use while it starts.
        seen_at: When this state was determined.
        warned: The periods whose end was announced.
        messages: All messages so far.
        stopped: Why the service was stopped, or None.
    """

    terms_id: str
    began_at: float
    used_at: float
    seen_at: float
    warned: tuple[Reason, ...] = ()
    messages: tuple[str, ...] = ()
    stopped: str | None = None

    def left_s(self, terms: Terms) -> dict[Reason, float]:
        """Return the seconds left of each period; negative after its end."""
        since: dict[Reason, float] = {"lease": self.began_at, "idle": self.used_at}
        return {
            reason: since[reason] + period_s - self.seen_at
            for reason, period_s in terms.periods_s().items()
        }


def first_state(terms: Terms, now: float) -> TermsState:
    """Return the state of a service that is seen for the first time."""
    return TermsState(terms.id, began_at=now, used_at=now, seen_at=now)


def next_state(
    name: str,
    terms: Terms,
    state: TermsState,
    now: float,
    *,
    starting: bool = False,
    idle_s: float | None = None,
) -> TermsState:
    """Return the state at ``now``, with the warnings and the stop that are due.

    Args:
        name: The service's name, for the messages.
        terms: Its terms.
        state: Its last state.
        now: The current time in seconds.
        starting: Whether it cannot answer yet.
        idle_s: Seconds without a request; None if not known.
    """
    used_at = state.used_at
    if starting:
        used_at = now
    elif idle_s is not None:
        used_at = max(used_at, now - idle_s)
    state = replace(state, used_at=used_at, seen_at=now)
    left_s = state.left_s(terms)
    ended = [reason for reason, seconds in left_s.items() if seconds <= 0]
    if ended and state.stopped is None:
        text = f"{name} stopped: {_why_stopped(terms, ended[0])}"
        return replace(state, stopped=text, messages=(*state.messages, text))
    due = {r: s for r, s in left_s.items() if 0 < s <= warning_s(terms, r)}
    new = [reason for reason in due if reason not in state.warned]
    texts = [_warning(name, terms, reason, due[reason]) for reason in new]
    # A request ends the warning about idle time, and the next one is announced again.
    return replace(state, warned=tuple(due), messages=(*state.messages, *texts))


def warning_s(terms: Terms, reason: Reason) -> float:
    """Return the seconds before the end of a period at which the warning is due."""
    return min(WARNING_S, terms.periods_s()[reason] / 2)


def _why_stopped(terms: Terms, reason: Reason) -> str:
    period = duration(terms.periods_s()[reason])
    return f"its lease of {period} ended" if reason == "lease" else f"no request for {period}"


def _warning(name: str, terms: Terms, reason: Reason, left_s: float) -> str:
    if reason == "lease":
        return f"the lease of {name} ends in {duration(left_s)}; deploy it again to renew the lease"
    idle_s = terms.periods_s()["idle"] - left_s
    return (
        f"{name} has had no request for {duration(idle_s)}; without one it stops in "
        f"{duration(left_s)}"
    )


def duration(seconds: float) -> str:
    """Return a duration as people read it, such as ``90 s``, ``12 min`` or ``3 h 5 min``."""
    if seconds < 120:
        return f"{max(0.0, seconds):.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if not hours:
        return f"{minutes} min"
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
