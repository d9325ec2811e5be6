"""Thirty tenants on a real cluster: the actor, its store, the calls and the clock are real, the
engines are not (two cores would hold two); and one seat with a real engine.
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

import pytest
from support.paths import ROOT

from serving.classroom.leases import Lease
from serving.errors import LeaseError
from serving.spec.model import ModelSpec
from serving.spec.scaling import ScalingSpec
from serving.spec.tenants import Tenant, key_hash, new_key
from workbench.classroom import Classroom, Seat, join_class, open_class
from workbench.errors import SettingError

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("ray_alone"), pytest.mark.timeout(400)]


class Paper:
    """Applications as lines of a file: what stands in for Ray Serve in the warden's process."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def held(self) -> dict[str, int]:
        return dict(json.loads(self.file.read_text())) if self.file.exists() else {}

    def write(self, held: dict[str, int]) -> None:
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(held))
        part.replace(self.file)

    def delete(self, application: str) -> None:
        self.write({name: n for name, n in self.held().items() if name != application})


@pytest.fixture
def paper(tmp_path: Path) -> Paper:
    return Paper(str(tmp_path / "applications.json"))


def papers(file: str) -> Callable[[], Paper]:
    """Makes it in the actor, where this module is not importable."""
    source = {"json": json, "Path": Path, "Paper": Paper}
    return lambda: source["Paper"](file)  # type: ignore[operator]


def place(name: str, key: str, seconds: float, **fields: object) -> Lease:
    ends = datetime.now(UTC) + timedelta(seconds=seconds)
    tenant = Tenant(name=name, key_hash=key_hash(key), requests_per_minute=60)
    return Lease(tenant=tenant, ends_at=ends, **fields)  # type: ignore[arg-type]


def until(done: Callable[[], object], within_s: float = 240) -> None:
    deadline = time.monotonic() + within_s
    while not done():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.2)


@pytest.fixture
def room(paper: Paper) -> Iterator[tuple[Classroom, dict[str, str]]]:
    """Thirty places; every third lease is short."""
    import ray
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    keys = {f"student-{n:02}": new_key() for n in range(30)}
    places = [
        place(name, key, 60 if n % 3 == 0 else 3600, warn_s=50)
        for n, (name, key) in enumerate(keys.items())
    ]
    found = open_class(places, simulated=papers(str(paper.file)))
    yield found, keys
    with contextlib.suppress(ray.exceptions.RayError):
        found.close()
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def test_thirty_tenants_are_admitted_warned_and_ended_by_the_cluster_alone(
    room: tuple[Classroom, dict[str, str]], paper: Paper
) -> None:
    classroom, keys = room
    told: dict[str, list[str]] = {name: [] for name in keys}

    def take(name: str) -> Seat:
        seat = join_class(name, keys[name], say=told[name].append)
        seat._admit(ModelSpec())
        return seat

    with ThreadPoolExecutor(10) as pool:
        seats = dict(zip(keys, pool.map(take, keys), strict=True))
    paper.write({seat.place.application: 1 for seat in seats.values()} | {"another": 5})
    short = {name for n, name in enumerate(keys) if n % 3 == 0}

    with pytest.raises(LeaseError, match=r"max_replicas = 2 is over the cap of 1"):
        seats["student-01"]._admit(ModelSpec(scaling=ScalingSpec(max_replicas=2)))
    with pytest.raises(LeaseError, match="has no place"):
        join_class("student-01", keys["student-02"])

    # The warden's process is killed meanwhile; Ray starts it anew, and it knows all it knew.
    import ray

    ray.kill(classroom._warden, no_restart=False)
    until(lambda: len(paper.held()) == 21)
    left = set(paper.held())
    assert left == {"another", *(f"class-{name}" for name in keys if name not in short)}
    table = classroom.table()
    assert set(table.index[table.deleted == "the lease ran out"]) == short
    assert set(table.index[table.replicas == 1]) == set(keys) - short
    assert (table.replica_s[table.replicas == 1] > 0).all()
    with pytest.raises(LeaseError, match="the lease ran out at"):
        seats["student-00"]._admit(ModelSpec())

    # What was told before the actor was killed is not forgotten.
    seats["student-00"].listen()
    assert [line.partition(" in ")[0] for line in told["student-00"]] == [
        "student-00: the lease ends",
        "student-00: the lease ran out",
    ]
    classroom.stop("student-01")
    assert "class-student-01" not in paper.held()
    seats["student-01"].listen()
    assert told["student-01"] == ["student-01: stopped by the instructor"]
    with pytest.raises(SettingError, match="tenant is 'nobody'"):
        classroom.stop("nobody")
    with pytest.raises(LeaseError, match="instructor"):
        open_class([], leader_key=keys["student-01"])
    classroom.close()
    assert paper.held() == {"another": 5}
    with pytest.raises(LeaseError, match="No class is open"):
        join_class("student-01", keys["student-01"])


SEAT = """
import sys, time
import workbench as wb
from datetime import UTC, datetime, timedelta
from serving.spec.tenants import Tenant, key_hash
from serving.classroom.leases import Lease
from workbench.classroom import join_class, open_class

key = "sk-the-key-of-ada-itself"
ends = datetime.now(UTC) + timedelta(hours=1)
ada = Place(tenant=Tenant(name="ada", key_hash=key_hash(key)), ends_at=ends, warn_s=5)
room = open_class([ada])
endpoint = join_class("ada", key).deploy(wb.ModelSpec(max_model_len=256))
print("URL", endpoint.base_url.partition("/ada")[1], flush=True)
answer = endpoint.client.completions.create(model=endpoint.model_id, prompt="a", max_tokens=3)
print("TOKENS", answer.usage.completion_tokens, flush=True)
print("HELD", room.table().replicas["ada"], flush=True)
room.put(ada.model_copy(update={"ends_at": datetime.now(UTC) + timedelta(seconds=8)}))
deadline = time.monotonic() + 90
while time.monotonic() < deadline and "class-ada" in str(wb_apps()):
    time.sleep(0.5)
print("GONE", "class-ada" not in str(wb_apps()), flush=True)
room.close()
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_seat_with_a_real_engine_answers_at_its_route_until_its_lease_ends() -> None:
    apps = "def wb_apps():\n    from serving.deploy import status\n"
    apps += "    return list(status.details()['applications'])\n"
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", apps + SEAT],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=380,
        )
    said = done.stdout
    for line in ("URL /ada", "TOKENS 3", "HELD 1", "ada: the lease ends in", "GONE True"):
        assert line in said, said[-3000:] + done.stderr[-2000:]
