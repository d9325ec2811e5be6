"""The memory of a tree of processes, with shared pages counted once."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import psutil

EVERY_S = 2.0


def pss_gib(pid: int, name: str = "") -> float:
    """Return the memory in GiB of all processes below `pid` whose name contains `name`.

    This is the sum of their proportional set sizes: a page that n processes share counts 1/n in
    each of them (`/proc/PID/smaps_rollup`).
    """
    kib = 0
    for process in psutil.Process(pid).children(recursive=True):
        try:
            if name not in process.name():
                continue
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except (OSError, psutil.Error):  # the process has ended
            continue
        match = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
        kib += int(match[1]) if match else 0
    return kib / 2**20


class PeakMemory:
    """Measures the processes below `pid` within a `with` block; `gib` is the peak in GiB."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.gib = 0.0

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(EVERY_S):
            self.gib = max(self.gib, pss_gib(self._pid))
