"""The actor that enforces a class's leases and outlives every notebook.

Once a second it reads the state of Ray Serve, adds up each tenant's usage, warns before a lease
ends, and deletes the deployment at the end. Ray's key-value store has a copy of its state, so a
restarted actor continues where the last one stopped.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Protocol

from serving.classroom.leases import Lease, LeaseRegistry, LeaseUsage, ReplicaResources
from serving.compat.ray import delete_value, load_value, store_value

ACTOR_NAME = "llm-workbench-class"
NAMESPACE = "llm-workbench"
UPDATE_S = 1.0
ACTIVE_STATES = ("STARTING", "UPDATING", "RECOVERING", "RUNNING")
logger = logging.getLogger(__name__)


class Applications(Protocol):
    """The applications of the cluster, as the manager sees them."""

    def replicas(self) -> dict[str, int]:
        """Return the starting and running replicas, by application."""
        ...

    def delete(self, application: str) -> None:
        """Start to delete an application, and return at once."""
        ...


class ServeApplications:
    """The applications that Ray Serve runs."""

    def replicas(self) -> dict[str, int]:
        """Return the starting and running replicas with an engine, by application."""
        from serving.deploy import status

        return {
            name: _count_replicas(application)
            for name, application in status.details()["applications"].items()
        }

    def delete(self, application: str) -> None:
        """Delete an application in a thread."""
        from serving.deploy import service

        threading.Thread(target=service.end_application, args=(application,), daemon=True).start()


def _count_replicas(application: dict[str, Any]) -> int:
    from serving.deploy import status

    return sum(
        str(getattr(replica["state"], "value", replica["state"])) in ACTIVE_STATES
        for name, deployment in application["deployments"].items()
        if name not in status.WITHOUT_ENGINE
        for replica in deployment["replicas"]
    )


def utc_now() -> datetime:
    """Return the time of the cluster's clock."""
    return datetime.now(UTC)


class LeaseManager:
    """The actor. Every call needs a key: the instructor's, or a tenant's for its own lease.

    Its methods raise LeaseError for a wrong key.
    """

    def __init__(
        self,
        leases: list[dict[str, Any]],
        instructor_hash: str,
        applications: Callable[[], Applications] = ServeApplications,
    ) -> None:
        self._applications = applications()
        self._registry = _load_state() or LeaseRegistry(
            [Lease(**fields) for fields in leases], instructor_hash
        )
        self._lock = threading.Lock()
        _save_state(self._registry)
        # A thread, not a call from outside: an actor that Ray restarts must continue by itself.
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                self._update()
            except Exception:
                logger.exception("could not update the leases of the class; trying again")
            time.sleep(UPDATE_S)

    def _update(self) -> None:
        replicas = self._applications.replicas()
        with self._lock:
            actions = self._registry.update(replicas, utc_now())
            if self._registry.leases:
                _save_state(self._registry)
        for action in actions:
            if action.kind == "delete":
                self._applications.delete(action.lease.application)

    async def admit(self, name: str, key: str, replicas: int, resources: dict[str, float]) -> Any:
        """Check that a tenant may deploy, and return its lease.

        Raises:
            LeaseError: The key is wrong, the lease has ended, or a cap is exceeded.
        """
        with self._lock:
            lease = self._registry.admit(
                name, key, replicas, ReplicaResources(**resources), utc_now()
            )
        return lease.model_dump(mode="json")

    async def lease(self, name: str, key: str) -> dict[str, Any]:
        """Return a tenant's lease, its messages so far and the seconds that remain."""
        lease = self._registry.find(name, key)
        return {
            "lease": lease.model_dump(mode="json"),
            "messages": list(self._registry.usage[name].messages),
            "remaining_s": lease.remaining_s(utc_now()),
        }

    async def table(self, instructor_key: str) -> list[dict[str, Any]]:
        """Return one row per tenant: its caps, its replicas and its usage."""
        self._registry.require_instructor(instructor_key)
        replicas = await asyncio.to_thread(self._applications.replicas)
        return self._registry.table(replicas, utc_now())

    async def set_lease(self, instructor_key: str, lease: dict[str, Any]) -> None:
        """Add a lease or replace one."""
        self._registry.require_instructor(instructor_key)
        with self._lock:
            self._registry.set_lease(Lease(**lease))

    async def stop(self, instructor_key: str, name: str) -> None:
        """Delete a tenant's deployment now. The lease continues until its end."""
        self._registry.require_instructor(instructor_key)
        lease, usage = self._registry.leases[name], self._registry.usage[name]
        usage.why_deleted = "stopped by the instructor"
        usage.messages.append(usage.why_deleted)
        await asyncio.to_thread(self._applications.delete, lease.application)

    async def close(self, instructor_key: str) -> None:
        """Delete every tenant's deployment, and the class with it."""
        self._registry.require_instructor(instructor_key)
        replicas = await asyncio.to_thread(self._applications.replicas)
        for lease in self._registry.leases.values():
            if lease.application in replicas:
                await asyncio.to_thread(self._applications.delete, lease.application)
        with self._lock:
            self._registry.leases.clear()
            _delete_state()


def _save_state(registry: LeaseRegistry) -> None:
    state = {
        "instructor_hash": registry.instructor_hash,
        "leases": [lease.model_dump(mode="json") for lease in registry.leases.values()],
        "usage": {name: asdict(usage) for name, usage in registry.usage.items()},
        "resources": {name: asdict(value) for name, value in registry.resources.items()},
    }
    store_value(ACTOR_NAME, json.dumps(state).encode())


def _load_state() -> LeaseRegistry | None:
    saved = load_value(ACTOR_NAME)
    if not saved:
        return None
    state = json.loads(saved)
    registry = LeaseRegistry(
        [Lease(**fields) for fields in state["leases"]], state["instructor_hash"]
    )
    registry.usage |= {name: LeaseUsage(**fields) for name, fields in state["usage"].items()}
    registry.resources |= {
        name: ReplicaResources(**fields) for name, fields in state["resources"].items()
    }
    return registry


def _delete_state() -> None:
    delete_value(ACTOR_NAME)
