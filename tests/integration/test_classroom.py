"""A class of thirty tenants on a real cluster without engines, and one seat with a real engine.

The actor, its store, the calls and the clock are real. Two cores have room for two engines only.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT

from serving.classroom.leases import Lease
from serving.errors import LeaseError
from serving.spec.model import ModelSpec
from serving.spec.scaling import ScalingSpec
from serving.spec.tenants import Tenant, key_hash, new_key
from workbench.classroom import Classroom, Seat, join
from workbench.classroom import open as open_class
from workbench.errors import SettingError

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("ray_alone"), pytest.mark.timeout(600)]


class FakeApplications:
    """Applications in a file, in place of Ray Serve in the manager's process."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def replicas(self) -> dict[str, int]:
        return dict(json.loads(self.file.read_text())) if self.file.exists() else {}

    def write(self, replicas: dict[str, int]) -> None:
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(replicas))
        part.replace(self.file)

    def delete(self, application: str) -> None:
        self.write({name: n for name, n in self.replicas().items() if name != application})


@pytest.fixture
def fake(tmp_path: Path) -> FakeApplications:
    return FakeApplications(str(tmp_path / "applications.json"))


def fake_factory(file: str) -> Callable[[], FakeApplications]:
    """Create the fake in the actor's process, which cannot import this module."""
    source: dict[str, Any] = {"json": json, "Path": Path, "FakeApplications": FakeApplications}
    return lambda: source["FakeApplications"](file)


def make_lease(name: str, key: str, seconds: float, **fields: Any) -> Lease:
    ends = datetime.now(UTC) + timedelta(seconds=seconds)
    tenant = Tenant(name=name, key_hash=key_hash(key), requests_per_minute=60)
    return Lease(tenant=tenant, ends_at=ends, **fields)


def wait_until(done: Callable[[], object], within_s: float = 240) -> None:
    deadline = time.monotonic() + within_s
    while not done():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.2)


@pytest.fixture
def room(fake: FakeApplications) -> Iterator[tuple[Classroom, dict[str, str]]]:
    """Open a class of thirty tenants, whose leases last for an hour."""
    import ray
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    keys = {f"student-{n:02}": new_key() for n in range(30)}
    leases = [make_lease(name, key, 3600, warn_s=50) for name, key in keys.items()]
    opened = open_class(leases, applications=fake_factory(str(fake.file)))
    yield opened, keys
    with contextlib.suppress(ray.exceptions.RayError):
        opened.close()
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def test_manager_admits_warns_and_ends_thirty_tenants(
    room: tuple[Classroom, dict[str, str]], fake: FakeApplications
) -> None:
    classroom, keys = room
    messages: dict[str, list[str]] = {name: [] for name in keys}

    def take_seat(name: str) -> Seat:
        seat = join(name, keys[name], notify=messages[name].append)
        seat._admit(ModelSpec())
        return seat

    with ThreadPoolExecutor(10) as pool:
        seats = dict(zip(keys, pool.map(take_seat, keys), strict=True))
    fake.write({seat.lease.application: 1 for seat in seats.values()} | {"another": 5})
    short = {name for n, name in enumerate(keys) if n % 3 == 0}

    with pytest.raises(LeaseError, match=r"max_replicas must be at most 1, got 2"):
        seats["student-01"]._admit(ModelSpec(scaling=ScalingSpec(max_replicas=2)))
    with pytest.raises(LeaseError, match="has no lease"):
        join("student-01", keys["student-02"])

    # Leases are shortened only now, when all have their seats, however long that took.
    for name in short:
        classroom.set_lease(make_lease(name, keys[name], 40, warn_s=50))
    wait_until(lambda: set(classroom.table().query("warned").index) == short)
    time.sleep(1)  # The state is kept a moment after it changes.

    # The manager's process is killed meanwhile. Ray restarts it, and it restores its state.
    import ray

    ray.kill(classroom._manager, no_restart=False)
    wait_until(lambda: len(fake.replicas()) == 21)
    remaining = set(fake.replicas())
    assert remaining == {"another", *(f"class-{name}" for name in keys if name not in short)}
    table = classroom.table()
    assert set(table.index[table.deleted == "the lease ended"]) == short
    assert set(table.index[table.replicas == 1]) == set(keys) - short
    assert (table.replica_s[table.replicas == 1] > 0).all()
    with pytest.raises(LeaseError, match="the lease ended at"):
        seats["student-00"]._admit(ModelSpec())

    # Messages from before the restart are kept.
    seats["student-00"].listen()
    assert [line.partition(" in ")[0] for line in messages["student-00"]] == [
        "student-00: the lease ends",
        "student-00: the lease ended",
    ]
    classroom.stop("student-01")
    assert "class-student-01" not in fake.replicas()
    seats["student-01"].listen()
    assert messages["student-01"] == ["student-01: stopped by the instructor"]
    with pytest.raises(SettingError, match=r"tenant must .*got 'nobody'"):
        classroom.stop("nobody")
    with pytest.raises(LeaseError, match="instructor"):
        open_class([], instructor_key=keys["student-01"])
    classroom.close()
    assert fake.replicas() == {"another": 5}
    with pytest.raises(LeaseError, match="No class is open"):
        join("student-01", keys["student-01"])


SEAT = """
import sys, time
import workbench as wb
from datetime import UTC, datetime, timedelta

def applications():
    from serving.deploy import status
    return list(status.details()["applications"])


key = "sk-the-key-of-ada-itself"
ends = datetime.now(UTC) + timedelta(hours=1)
ada = wb.Tenant(name="ada", key_hash=wb.classroom.key_hash(key))
lease = wb.classroom.Lease(tenant=ada, ends_at=ends, warn_s=30)
room = wb.classroom.open([lease])
endpoint = wb.classroom.join("ada", key).deploy(wb.ModelSpec(max_model_len=256))
print("URL", endpoint.base_url.partition("/ada")[1], flush=True)
answer = endpoint.client.completions.create(model=endpoint.model_id, prompt="a", max_tokens=3)
print("TOKENS", answer.usage.completion_tokens, flush=True)
print("REPLICAS", room.table().replicas["ada"], flush=True)
room.set_lease(lease.model_copy(update={"ends_at": datetime.now(UTC) + timedelta(seconds=20)}))
deadline = time.monotonic() + 180
while time.monotonic() < deadline and "class-ada" in applications():
    time.sleep(0.5)
print("GONE", "class-ada" not in applications(), flush=True)
room.close()
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_seat_with_a_real_engine_answers_until_its_lease_ends() -> None:
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.run(
            [sys.executable, "-c", SEAT],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=560,
        )
    output = process.stdout
    for line in ("URL /ada", "TOKENS 3", "REPLICAS 1", "ada: the lease ends in", "GONE True"):
        assert line in output, output[-3000:] + process.stderr[-2000:]
