"""The exceptions of the notebook side.

They and those of the cluster side are subclasses of `WorkbenchError`.
"""

from __future__ import annotations

from serving.errors import (
    ClusterError,
    DeployError,
    EndpointGoneError,
    LeaseError,
    MissingPackageError,
    ModelNotFoundError,
    NameTakenError,
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
    "NameTakenError",
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
    """A value that is out of range or does not fit the rest."""


class UnknownMetricError(SettingError):
    """A metric, or a kind of sample, that does not exist."""


class RunError(WorkbenchError):
    """A run folder that is missing, exists already, or cannot be read or written."""


class TraceError(WorkbenchError):
    """A trace that cannot be replayed. The message names the file, the line and the column."""
