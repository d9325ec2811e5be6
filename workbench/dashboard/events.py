"""The event log: decisions, changes, failures, shed requests and messages, in order of time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from workbench.figures.panels import change_text
from workbench.figures.replica_traces import decision_reasons
from workbench.quantities import significant

if TYPE_CHECKING:
    from workbench.records import DecisionSample, LoadChange, RequestRecord

MAX_EVENTS = 200
MERGE_S = 10.0
"""Failures within so many seconds of the first one are one event."""

Kind: TypeAlias = Literal["more", "fewer", "change", "failed", "shed", "slow", "error"]
Event: TypeAlias = dict[str, Any]
"""An event as the page gets it: `time_s`, `kind`, `title` and `detail`."""
_FAILED: dict[str, tuple[Kind, str]] = {
    "error": ("failed", "failed"),
    "timeout": ("failed", "timed out"),
    "shed": ("shed", "shed"),
}


class EventLog:
    """Collects events, the latest `MAX_EVENTS` of them."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._changes = 0
        self._counted: dict[str, tuple[Event, int]] = {}

    def events(self) -> list[Event]:
        """Return the events, the latest first."""
        return sorted(map(dict, self._events), key=lambda event: -event["time_s"])

    def add(self, time_s: float, kind: Kind, title: str, detail: str = "") -> Event:
        """Add an event at `time_s`, in seconds since the start of the run."""
        event = {"time_s": round(time_s, 1), "kind": kind, "title": title, "detail": detail}
        self._events.append(event)
        del self._events[:-MAX_EVENTS]
        return event

    def decided(self, decisions: Iterable[DecisionSample]) -> None:
        """Add decisions of the autoscaler."""
        for decision in decisions:
            kind: Kind = "more" if decision.to_target > decision.from_target else "fewer"
            title = f"Target {decision.from_target} → {decision.to_target}"
            reasons = decision_reasons(msgspec.structs.asdict(decision))
            self.add(decision.time_s, kind, title, "; ".join(reasons))

    def changed(self, changes: Sequence[LoadChange]) -> None:
        """Add the changes of the load that are new."""
        for change in changes[self._changes :]:
            titles = {"start": "Load started", "end": "Load ended"}
            title = titles.get(change.what) or change_text(change)
            kind: Kind = "slow" if change.what == "late" else "change"
            self.add(change.time_s, kind, title, change.note or "")
        self._changes = len(changes)

    def ended(self, record: RequestRecord) -> None:
        """Count a request that ended, if it failed."""
        if record.status not in _FAILED:
            return
        kind, verb = _FAILED[record.status]
        at_s = record.end_s or record.due_s
        event, count = self._counted.get(verb, (None, 0))
        if event is None or at_s - event["time_s"] > MERGE_S:
            event, count = self.add(at_s, kind, ""), 0
        count += 1
        title = f"{significant(count)} request{'' if count == 1 else 's'} {verb}"
        event.update(title=title, detail=record.error or "")
        self._counted[verb] = (event, count)
