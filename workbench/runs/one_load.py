"""A run folder takes one load, because all its times are on that load's clock."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from workbench.errors import RunError
from workbench.records import LoadChange

_FILES = ("plan.json", "load.jsonl", "requests.jsonl")
"""The files that a load writes."""
_LOAD_ID = re.compile(r"(load-[0-9a-f]{6})-\d+(?:-\d+)?")
"""The id of a request of a load: the load's own tag, then numbers."""


def load_file(folder: Path) -> str | None:
    """Return the name of a file that a load has written to `folder`; None if it took no load."""
    return next((name for name in _FILES if (folder / name).exists()), None)


def claim(folder: Path, *, live: bool) -> None:
    """Reserve `folder` for a load, before anything is sent.

    Raises:
        RunError: A load was started in it before.
    """
    found = load_file(folder)
    if found is None and live:
        try:
            (folder / "load.jsonl").touch(exist_ok=False)
        except FileExistsError:
            found = "load.jsonl"
    if found is not None:
        raise RunError(
            f"{folder} already has a load ({found}), and a run folder takes one, as its times are "
            "on one clock. Use another folder: Session.empty_folder() or Run.create(...)"
        )


def check_starts(changes: Iterable[LoadChange], folder: Path) -> None:
    """Raise `RunError` if more than one live load was started in `folder`."""
    starts = sum(change.what == "start" for change in changes)
    if starts > 1:
        raise _two_clocks(folder, "load.jsonl", starts)


def check_requests(request_ids: Iterable[str], folder: Path) -> None:
    """Raise `RunError` if the ids are those of more than one load."""
    tags = {match[1] for name in request_ids if (match := _LOAD_ID.fullmatch(name))}
    if len(tags) > 1:
        raise _two_clocks(folder, "requests.jsonl", len(tags))


def _two_clocks(folder: Path, file: str, loads: int) -> RunError:
    return RunError(
        f"{folder} has {loads} loads in {file}, each with its own clock, so their times cannot be "
        "shown together. Send each load into a folder of its own"
    )
