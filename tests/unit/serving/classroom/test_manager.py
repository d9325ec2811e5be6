"""The lease manager, with a store and applications in memory."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from ray.experimental import internal_kv

from serving.classroom import manager
from serving.classroom.leases import Lease
from serving.classroom.manager import LeaseManager
from serving.errors import LeaseError
from serving.spec.tenants import Tenant, key_hash

INSTRUCTOR_KEY = "sk-instructor-of-the-class"
ADA_KEY = "sk-the-key-of-ada"


class FakeApplications:
    """Applications in a dictionary."""

    def __init__(self) -> None:
        self.running: dict[str, int] = {}

    def replicas(self) -> dict[str, int]:
        return dict(self.running)

    def delete(self, application: str) -> None:
        self.running.pop(application, None)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Replace Ray's key-value store by a dictionary, and let the test call the updates."""
    values: dict[str, bytes] = {}

    def put(key: str, value: bytes, overwrite: bool) -> None:
        values[key] = value

    monkeypatch.setattr(internal_kv, "_internal_kv_put", put)
    monkeypatch.setattr(internal_kv, "_internal_kv_get", values.get)
    monkeypatch.setattr(internal_kv, "_internal_kv_del", lambda key: values.pop(key, None))
    monkeypatch.setattr(LeaseManager, "_run", lambda self: None)
    return values


def lease(seconds: float, **fields: Any) -> dict[str, Any]:
    tenant = Tenant(name="ada", key_hash=key_hash(ADA_KEY))
    ends_at = datetime.now(UTC) + timedelta(seconds=seconds)
    return Lease(tenant=tenant, ends_at=ends_at, **fields).model_dump(mode="json")


def start(fake: FakeApplications, *leases: dict[str, Any]) -> LeaseManager:
    return LeaseManager(list(leases), key_hash(INSTRUCTOR_KEY), lambda: fake)


@pytest.mark.usefixtures("store")
def test_application_is_deleted_when_its_lease_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [datetime.now(UTC)]
    monkeypatch.setattr(manager, "utc_now", lambda: now[0])
    fake = FakeApplications()
    fake.running = {"class-ada": 1, "other": 2}
    actor = start(fake, lease(100))
    asyncio.run(actor.admit("ada", ADA_KEY, 1, {"cpus": 2.0, "gpus": 0.0}))
    actor._update()
    assert fake.running == {"class-ada": 1, "other": 2}
    now[0] += timedelta(seconds=200)
    actor._update()
    assert fake.running == {"other": 2}
    (row,) = asyncio.run(actor.table(INSTRUCTOR_KEY))
    assert row["deleted"] == "the lease ended"
    assert row["replica_s"] >= 100
    assert row["cpu_s"] == pytest.approx(2 * row["replica_s"], abs=0.11)  # both are rounded
    state = asyncio.run(actor.lease("ada", ADA_KEY))
    assert state["messages"][-1] == "the lease ended"


def test_restarted_manager_restores_leases_usage_and_messages(store: dict[str, bytes]) -> None:
    fake = FakeApplications()
    fake.running = {"class-ada": 1}
    first = start(fake, lease(3600))
    asyncio.run(first.stop(INSTRUCTOR_KEY, "ada"))
    longer = lease(7200, max_replicas=3)
    asyncio.run(first.set_lease(INSTRUCTOR_KEY, longer))
    first._update()
    assert set(store) == {manager.ACTOR_NAME}
    second = start(fake)
    state = asyncio.run(second.lease("ada", ADA_KEY))
    assert state["messages"] == ["stopped by the instructor"]
    assert state["lease"] == longer


def test_closing_deletes_the_tenants_applications_and_the_state(store: dict[str, bytes]) -> None:
    fake = FakeApplications()
    fake.running = {"class-ada": 1, "other": 2}
    actor = start(fake, lease(3600))
    with pytest.raises(LeaseError, match="instructor"):
        asyncio.run(actor.close(ADA_KEY))
    asyncio.run(actor.close(INSTRUCTOR_KEY))
    assert fake.running == {"other": 2}
    actor._update()  # must not save the state again
    assert store == {}
