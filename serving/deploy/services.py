"""The list of the services that run on the connected cluster."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from serving.deploy import record, status
from serving.deploy.ownership import owner_of


class ServiceSummary(NamedTuple):
    """A running service in plain values, as a table or JSON shows it.

    Attributes:
        name: Its name.
        models: Ids of its models, separated by commas; empty if not deployed by this project.
        state: Its state, as Ray Serve reports it.
        replicas: Its running replicas with an engine.
        owner: Who deployed it, such as ``ada@hub``; None if not known.
        uptime_s: Seconds since it was deployed last.
        idle_s: Seconds since its last request.
        lease_left_s: Seconds until its lease ends.
        stops_in_s: Seconds until it stops by itself if no request arrives.
        dollars_per_hour: $ per hour of its replicas.
    """

    name: str
    models: str
    state: str
    replicas: int
    owner: str | None
    uptime_s: float | None
    idle_s: float | None
    lease_left_s: float | None
    stops_in_s: float | None
    dollars_per_hour: float | None


def list_services() -> list[ServiceSummary]:
    """Return a summary of every application of the cluster, by name."""
    applications = status.details()["applications"]
    return [_summary(name, applications[name]) for name in sorted(applications)]


def _summary(name: str, application: dict[str, Any]) -> ServiceSummary:
    service = status.status_of(name, application)
    deployed = record.load(name)
    models = [] if deployed is None else [model.model_id for model in deployed.spec.models]
    deployed_at = application.get("last_deployed_time_s")
    return ServiceSummary(
        name=name,
        models=", ".join(models),
        state=service.state,
        replicas=status.engine_replicas(service),
        owner=owner_of(application),
        uptime_s=None if not deployed_at else max(0.0, time.time() - deployed_at),
        idle_s=service.idle_s,
        lease_left_s=service.lease_left_s,
        stops_in_s=service.stops_in_s,
        dollars_per_hour=service.dollars_per_hour,
    )
