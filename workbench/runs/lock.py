"""A folder that one process at a time may work in."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workbench.errors import RunError


@contextmanager
def lock_folder(folder: Path, work: str) -> Iterator[None]:
    """Create `folder`, and lock it until the end of the block or of the process.

    Args:
        folder: The folder.
        work: What works in it, for the message, such as "sweep".

    Raises:
        RunError: If another process works in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"{folder} is in use by another {work}: wait for it, or stop it"
            ) from None
        yield
