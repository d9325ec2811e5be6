"""Keeps a class's leases on the cluster itself: an actor that outlives every notebook.

It looks at Ray Serve once a second, counts what each tenant holds, warns before a lease ends and
deletes the deployment when it has. Its register is kept in Ray's own store, so that an actor that
is started anew goes on where the last one was.
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

NAME = "llm-workbench-class"
NAMESPACE = "llm-workbench"
TICK_S = 1.0
BUSY_STATES = ("STARTING", "UPDATING", "RECOVERING", "RUNNING")
logger = logging.getLogger(__name__)


class Deployments(Protocol):
    """What the warden sees of the applications, and how it ends one."""

    def held(self) -> dict[str, int]:
        """Replicas that start or run, by application."""
        ...

    def delete(self, application: str) -> None:
        """Begin to delete it; return at once."""
        ...


class ServeDeployments:
    """Ray Serve's own."""

    def held(self) -> dict[str, int]:
        from serving.deploy import status

        return {name: _held(app) for name, app in status.details()["applications"].items()}

    def delete(self, application: str) -> None:
        from serving.deploy import service

        threading.Thread(target=service.end_application, args=(application,), daemon=True).start()


def _held(app: dict[str, Any]) -> int:
    """Replicas of the models; Serve's router and our ingress hold no engine."""
    return sum(
        str(getattr(replica["state"], "value", replica["state"])) in BUSY_STATES
        for name, deployment in app["deployments"].items()
        if name not in ("router", "ingress")
        for replica in deployment["replicas"]
    )


def now() -> datetime:
    """The cluster's clock."""
    return datetime.now(UTC)


class LeaseManager:
    """The actor. Every call names a key: the instructor's, or a tenant's for its own place."""

    def __init__(
        self,
        places: list[dict[str, Any]],
        leader_hash: str,
        deployments: Callable[[], Deployments] = ServeDeployments,
    ) -> None:
        self._deployments = deployments()
        self._register = _restored() or LeaseRegistry([Lease(**p) for p in places], leader_hash)
        self._lock = threading.Lock()
        _keep(self._register)
        # Not a call that somebody makes: an actor that Ray starts anew must look after it too.
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                self._tick()
            except Exception:
                logger.exception("The class's leases could not be looked after; trying again.")
            time.sleep(TICK_S)

    def _tick(self) -> None:
        held = self._deployments.held()
        with self._lock:
            actions = self._register.tick(held, now())
            if self._register.places:
                _keep(self._register)
        for action, place, _ in actions:
            if action == "delete":
                self._deployments.delete(place.application)

    async def admit(self, name: str, key: str, replicas: int, size: dict[str, float]) -> Any:
        """The tenant's place, or LeaseError."""
        with self._lock:
            place = self._register.admit(name, key, replicas, ReplicaResources(**size), now())
        return place.model_dump(mode="json")

    async def place(self, name: str, key: str) -> Any:
        """The tenant's place and what it was told so far."""
        place = self._register.find(name, key)
        told = list(self._register.use[name].told)
        return {"place": place.model_dump(mode="json"), "told": told, "left_s": place.left_s(now())}

    async def table(self, leader: str) -> list[dict[str, Any]]:
        """Every tenant: what it may, holds and has used."""
        self._register.lead(leader)
        held = await asyncio.to_thread(self._deployments.held)
        return self._register.rows(held, now())

    async def put(self, leader: str, place: dict[str, Any]) -> None:
        """Add a place or change one."""
        self._register.lead(leader)
        with self._lock:
            self._register.put(Lease(**place))

    async def stop(self, leader: str, name: str) -> None:
        """Delete a tenant's deployment now; its place stays until its lease ends."""
        self._register.lead(leader)
        place = self._register.places[name]
        use = self._register.use[name]
        use.why_deleted = "stopped by the instructor"
        use.told.append(use.why_deleted)
        await asyncio.to_thread(self._deployments.delete, place.application)

    async def close(self, leader: str) -> None:
        """Delete every tenant's deployment and forget the class."""
        self._register.lead(leader)
        held = await asyncio.to_thread(self._deployments.held)
        for place in self._register.places.values():
            if place.application in held:
                await asyncio.to_thread(self._deployments.delete, place.application)
        with self._lock:
            self._register.places.clear()
            _forget()


def _keep(register: LeaseRegistry) -> None:
    document = {
        "leader_hash": register.leader_hash,
        "places": [place.model_dump(mode="json") for place in register.places.values()],
        "use": {name: asdict(use) for name, use in register.use.items()},
        "sizes": {name: asdict(size) for name, size in register.sizes.items()},
    }
    store_value(NAME, json.dumps(document).encode())


def _restored() -> LeaseRegistry | None:
    kept = load_value(NAME)
    if not kept:
        return None
    document = json.loads(kept)
    register = LeaseRegistry([Lease(**p) for p in document["places"]], document["leader_hash"])
    register.use |= {name: LeaseUsage(**use) for name, use in document["use"].items()}
    register.sizes |= {name: ReplicaResources(**size) for name, size in document["sizes"].items()}
    return register


def _forget() -> None:
    delete_value(NAME)
