"""The exceptions of the project. Every message names the field, the value and the fix."""

from __future__ import annotations

ENGINE_ERROR_MARK = "The engine reported:"
"""Marks the part of a replica's failure that is shown to the user."""


class WorkbenchError(Exception):
    """Base class of all exceptions of this project."""


class SpecError(WorkbenchError):
    """A specification that cannot be served, found before anything starts."""


class ModelNotFoundError(SpecError):
    """A model path that does not exist or lacks the files of a model."""


class ResourcesError(SpecError):
    """A placement that the cluster can never satisfy."""


class MissingPackageError(WorkbenchError):
    """An optional package is not installed; the message has the command that installs it."""


class PortTakenError(WorkbenchError):
    """The endpoint's port already has a listener."""


class NameTakenError(WorkbenchError):
    """The name or route of an application is in use by one that this process may not replace."""


class ClusterError(WorkbenchError):
    """A Ray cluster that cannot be reached, or whose Ray or Serve runs with other options."""


class DeployError(WorkbenchError):
    """A replica did not start; the message ends with the engine's own errors."""


class EndpointGoneError(WorkbenchError):
    """An endpoint that was deleted, or whose cluster is gone."""


class LeaseError(WorkbenchError):
    """A call that a class rejects: without a lease, after its end, or beyond its resources."""
