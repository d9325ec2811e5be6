"""Who deployed an application, and who may replace it.

The owner's name travels with the application, in the ``user_config`` of its ingress, so it outlives
the process that deployed it. A process may replace an application of its own user that runs the
same spec, or one that this process deployed under that name.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from typing import Any

from serving.cluster.user_folder import user_name
from serving.deploy.status import state_name
from serving.errors import NameTakenError
from serving.spec.service import EndpointSpec

Applications = Mapping[str, Mapping[str, Any]]
"""Serve's details of each application, by name."""

MAX_NAME = 63
SUFFIXES = 20
"""Names that are tried for one user and one default name."""

_deployed: dict[tuple[str, str], set[str]] = {}
"""Fingerprints of what this process deployed, by cluster address and application."""


def current_owner() -> str:
    """Return this process's user and host, such as ``ada@hub``."""
    return f"{user_name()}@{socket.gethostname()}"


def remember(spec: EndpointSpec, cluster: str) -> None:
    """Record that this process deploys a spec on the cluster with this address."""
    _deployed.setdefault((cluster, spec.name), set()).add(spec.fingerprint())


def owns(spec: EndpointSpec, cluster: str, applications: Applications) -> bool:
    """Return whether this process may replace or delete the application of the spec's name.

    That is so if there is none.
    """
    application = applications.get(spec.name)
    if application is None:
        return True
    owner, fingerprint = _record(application)
    mine = _deployed.get((cluster, spec.name), set()) | {spec.fingerprint()}
    return owner == current_owner() and fingerprint in mine


def check_owner(spec: EndpointSpec, cluster: str, applications: Applications) -> None:
    """Raise :class:`NameTakenError` if this process may not replace the application."""
    if owns(spec, cluster, applications):
        return
    owner, _ = _record(applications[spec.name])
    reason = "runs another spec" if owner == current_owner() else "was deployed by another user"
    raise NameTakenError(
        f"name = {spec.name!r} is an application{_of_owner(applications[spec.name])} that runs on "
        f"this cluster and {reason}. Set another name, or pass replace=True to replace it."
    )


def named(
    spec: EndpointSpec, cluster: str, applications: Applications, *, replace: bool = False
) -> EndpointSpec:
    """Return the spec under a name and a route that this process may deploy.

    A name that was chosen is never changed. The default name gets a suffix if this process may not
    replace the application of that name: ``llm-ada``, or ``llm-ada-2`` and so on, at the route of
    the same name.

    Args:
        spec: The spec.
        cluster: The address of the cluster.
        applications: Serve's details of the cluster's applications, by name.
        replace: Whether to replace an application of another user.

    Raises:
        NameTakenError: The name or the route belongs to an application of another user.
    """
    if not replace:
        if "name" not in spec.model_fields_set:
            candidates = [spec, *_with_suffix(spec)]
            running = [c for c in candidates if c.name in applications]
            own = [c for c in running if owns(c, cluster, applications)]
            free = [c for c in candidates if c.name not in applications]
            spec = (own or free or [spec])[0]
        check_owner(spec, cluster, applications)
    _check_route(spec, applications)
    return spec


def _with_suffix(spec: EndpointSpec) -> list[EndpointSpec]:
    """Return the spec under each of this user's names for it, and at the routes of these names."""
    user = re.sub(r"[^a-z0-9]+", "-", user_name().lower()).strip("-") or str(os.getuid())
    first = f"{spec.name}-{user}"[: MAX_NAME - 3].rstrip("-")
    names = [first, *(f"{first}-{number}" for number in range(2, SUFFIXES + 1))]
    return [
        spec.model_copy(update={"name": name, "route_prefix": _route(spec, name)}) for name in names
    ]


def _check_route(spec: EndpointSpec, applications: Applications) -> None:
    for name, application in applications.items():
        deleting = state_name(application.get("status")) == "deleting"
        if name == spec.name or application.get("route_prefix") != spec.route_prefix or deleting:
            continue
        raise NameTakenError(
            f"route_prefix = {spec.route_prefix!r} belongs to the application {name!r}"
            f"{_of_owner(application)} on this cluster. Set another route_prefix, such as "
            f"{_route(spec, spec.name)!r}."
        )


def _route(spec: EndpointSpec, name: str) -> str:
    return f"{spec.route_prefix.rstrip('/')}/{name}"


def _record(application: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return the owner and the fingerprint of an application; None where they are not recorded."""
    for deployment in application.get("deployments", {}).values():
        config = deployment["deployment_config"].get("user_config") or {}
        if "fingerprint" in config:
            return config.get("owner"), config["fingerprint"]
    return None, None


def owner_of(application: Mapping[str, Any]) -> str | None:
    """Return who deployed an application, such as ``ada@hub``; None where it is not recorded."""
    owner, _ = _record(application)
    return owner


def _of_owner(application: Mapping[str, Any]) -> str:
    owner = owner_of(application)
    return f" of {owner}" if owner else ""
