"""Memory in use on the visible GPUs, as the driver reports it."""

from __future__ import annotations

import os
import subprocess
import time


def used_gib() -> list[float]:
    """Memory in use on each GPU, in GiB; empty where there is none."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        query += ["--id", visible]
    try:
        output = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [int(mib) / 1024 for mib in output.split()]


def wait_until_freed(before: list[float], timeout_s: float = 60) -> None:
    """Fail unless each GPU soon has at most 0.1 GiB more in use than before."""
    deadline = time.monotonic() + timeout_s
    while any(now > then + 0.1 for now, then in zip(used_gib(), before, strict=True)):
        assert time.monotonic() < deadline, f"{used_gib()} GiB are in use, {before} were before"
        time.sleep(0.5)
