"""The exceptions of the client side, and how a failed request is named in its record.

All of them, and those of the cluster side, come from `WorkbenchError`.
"""

from __future__ import annotations

from serving.errors import (
    ClusterError,
    DeployError,
    EndpointGoneError,
    LeaseError,
    MissingPackageError,
    ModelNotFoundError,
    PortTakenError,
    ResourcesError,
    SpecError,
    WorkbenchError,
)

__all__ = [
    "ClusterError",
    "DeployError",
    "EndpointGoneError",
    "LeaseError",
    "MissingPackageError",
    "ModelNotFoundError",
    "PortTakenError",
    "ResourcesError",
    "RunError",
    "SettingError",
    "SpecError",
    "TraceError",
    "UnknownMetricError",
    "WorkbenchError",
]


class SettingError(WorkbenchError):
    """A value that a measurement cannot be made with."""


class UnknownMetricError(SettingError):
    """A metric name that does not exist."""


class RunError(WorkbenchError):
    """A run folder that is missing, already there, or cannot be read."""


class TraceError(WorkbenchError):
    """A trace that cannot be replayed; the message names the file, the line and the column."""
