"""What the shared deployment is, for the tests that look at its limits or its progress."""

from __future__ import annotations

from dataclasses import dataclass, field

from workbench.endpoints.deployed import Endpoint

MAX_ONGOING = 8
MAX_QUEUED = 8


@dataclass
class Deployed:
    """The shared endpoint, and the progress lines its deployment gave."""

    endpoint: Endpoint
    progress: list[str] = field(default_factory=list)
