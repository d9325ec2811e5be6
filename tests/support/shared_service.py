"""What the shared deployment is, for the tests that look at its limits or its progress."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from workbench.endpoints.deployed import Endpoint

MAX_ONGOING = 8
MAX_QUEUED = 8


def session_logs() -> Path:
    """Return the folder of the logs of the cluster that this process is connected to."""
    import ray

    return Path(ray._private.worker.global_worker.node.get_session_dir_path()) / "logs"


@dataclass
class Deployed:
    """The shared endpoint, and the progress lines its deployment gave."""

    endpoint: Endpoint
    progress: list[str] = field(default_factory=list)
