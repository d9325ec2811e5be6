"""A write-ahead journal of a load worker: the requests it sent, and their results.

A worker that is killed loses its memory but not its journal. A request adds a line when it is sent
and another when it ends; no line contains its text. The worker holds a lock on the file while it
lives, so that a reader knows whether the file is still being written.
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
"""The journals in a run's folder: of workers whose records may not have reached the run."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A request in progress: what is known before it ends. `sent` is its id."""

    sent: str
    scheduled_s: float | None
    sent_s: float | None
    model: str | None
    tenant: str | None


class Journal:
    """The file of one worker. A disk that is full ends the journal, but not the load."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(exist_ok=True)
        self._descriptor: int | None = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def append(self, line: Sent | RequestRecord) -> None:
        """Write one line. It survives the death of this process."""
        if self._descriptor is None:
            return
        try:
            os.write(self._descriptor, msgspec.json.encode(line) + b"\n")
        except OSError:
            self.delete()

    def delete(self) -> None:
        """Close and remove the file, because its records are kept elsewhere."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            self.path.unlink(missing_ok=True)


def open_first(paths: Sequence[str]) -> Journal | None:
    """Return a journal at the first of `paths` that can be written, or None."""
    for path in paths:
        try:
            return Journal(Path(path))
        except OSError:
            continue
    return None


def read(path: Path) -> tuple[list[RequestRecord], list[Sent]]:
    """Return the requests that ended, and those in progress when the worker died.

    Both are empty for a file that does not exist or that a living worker still writes.
    """
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            lines = [line for line in file if line.endswith(b"\n")]
    except OSError:
        return [], []
    ended: list[RequestRecord] = []
    in_progress: dict[str, Sent] = {}
    for line in lines:
        if line.startswith(b'{"sent":'):
            request = msgspec.json.decode(line, type=Sent)
            in_progress[request.sent] = request
        else:
            ended.append(msgspec.json.decode(line, type=RequestRecord))
            in_progress.pop(ended[-1].request_id, None)
    return ended, list(in_progress.values())


def failed(request: Sent, reason: str, end_s: float | None = None) -> RequestRecord:
    """Return the record of a request that was in progress when its worker died."""
    absent: dict[str, Any] = {field.name: None for field in fields(RequestRecord)}
    known = {
        "request_id": request.sent,
        "scheduled_s": request.scheduled_s,
        "sent_s": request.sent_s,
        "end_s": end_s,
        "token_times_s": (),
        "status": "error",
        "error": reason,
        "model": request.model,
        "tenant": request.tenant,
    }
    return RequestRecord(**absent | known)


def records_in(run: Path) -> Iterator[RequestRecord]:
    """Yield the records in the journals of a run's folder. Requests in progress count as failed."""
    for path in sorted((run / FOLDER).glob("*.jsonl")):
        ended, in_progress = read(path)
        yield from ended
        for request in in_progress:
            yield failed(request, "the run was cut off while this request was in progress")
