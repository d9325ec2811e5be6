"""One compilation of the simulator for all worker processes of pytest."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

import pytest
from support.whatif import calibration, requests, service

from workbench.whatif.simulator import simulate


@pytest.fixture(scope="session", autouse=True)
def compiled_once() -> None:
    """Compile in the first worker, while the others wait and then load its code.

    The compilation takes some 20 s of a core, and numba does not share one that is under way.
    """
    with (Path(tempfile.gettempdir()) / f"numba-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        simulate(service(), requests((0.0, 8, 2)), calibration())
