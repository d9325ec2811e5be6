"""What a load worker sent and what became of it, on disk as it happens.

A worker that is killed takes its memory along; what it wrote stays. Each request leaves a line when
it is sent and one when it ends, with no text of it. The worker holds a lock on its file while it
lives, so that whoever finds the file knows whether it is still being written.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import msgspec

from workbench.records import RequestRecord

FOLDER = "unsaved"
"""In a run's folder: the files of workers whose records may not have reached the run."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A request on its way: what is known of it before it ends."""

    sent: str
    scheduled_s: float | None
    sent_s: float | None
    model: str | None
    tenant: str | None


class Journal:
    """One worker's file. A disk that takes no more ends it, never the load."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(exist_ok=True)
        self._descriptor: int | None = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def note(self, line: Sent | RequestRecord) -> None:
        """Write one line; once this has returned, no death of this process loses it."""
        if self._descriptor is None:
            return
        try:
            os.write(self._descriptor, msgspec.json.encode(line) + b"\n")
        except OSError:
            self.forget()

    def forget(self) -> None:
        """Close and remove the file: its records are kept elsewhere now."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            self.path.unlink(missing_ok=True)


def open_first(places: Sequence[str]) -> Journal | None:
    """A spool at the first of `places` that can be written; None without one."""
    for place in places:
        try:
            return Journal(Path(place))
        except OSError:
            continue
    return None


def read(path: Path) -> tuple[list[RequestRecord], list[Sent]]:
    """The requests that ended, and those that were under way when the worker died.

    Nothing from a file that is not there, or that a living worker still writes.
    """
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            whole = [line for line in file if line.endswith(b"\n")]
    except OSError:
        return [], []
    ended: list[RequestRecord] = []
    sent: dict[str, Sent] = {}
    for line in whole:
        if line.startswith(b'{"sent":'):
            one = msgspec.json.decode(line, type=Sent)
            sent[one.sent] = one
        else:
            ended.append(msgspec.json.decode(line, type=RequestRecord))
            sent.pop(ended[-1].request_id, None)
    return ended, list(sent.values())


def failed(one: Sent, why: str, end_s: float | None = None) -> RequestRecord:
    """The record of a request that was under way when what sent it died."""
    known = {"request_id": one.sent, "scheduled_s": one.scheduled_s, "sent_s": one.sent_s}
    known |= {"model": one.model, "tenant": one.tenant, "end_s": end_s}
    absent: dict[str, Any] = {field.name: None for field in fields(RequestRecord)}
    return RequestRecord(
        **absent | {"token_times_s": ()} | known | {"status": "error", "error": why}
    )


def left_in(run: Path) -> Iterator[RequestRecord]:
    """What dead workers left in a run's folder, the cut requests as failed."""
    for path in sorted((run / FOLDER).glob("*.jsonl")):
        ended, under_way = read(path)
        yield from ended
        for one in under_way:
            yield failed(one, "the run was cut off while this request was in progress")
