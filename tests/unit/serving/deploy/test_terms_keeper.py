"""The actor that stops services, with a store, services and a clock in memory."""

from __future__ import annotations

import pytest
from ray.experimental import internal_kv

from serving.deploy import status, terms_store
from serving.deploy.services import list_services
from serving.deploy.terms import Terms
from serving.deploy.terms_keeper import TermsKeeper
from serving.errors import EndpointGoneError
from serving.quotas import actor as ledger

MINUTE = 60.0


class World:
    """Services in a dictionary, and the clock of the cluster."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.running: dict[str, str] = {}
        self.last_use: dict[str, float] = {}
        self.stopped: list[str] = []

    def states(self) -> dict[str, str]:
        return dict(self.running)

    def idle_s(self, name: str) -> float | None:
        return self.now - self.last_use[name] if name in self.last_use else None

    def stop(self, name: str) -> None:
        self.stopped.append(name)
        self.running[name] = "deleting"

    def keeper(self) -> TermsKeeper:
        return TermsKeeper(lambda: self, clock=lambda: self.now)

    def deploy(self, name: str, terms: Terms) -> None:
        terms_store.save_terms(name, terms)
        self.running[name] = "running"
        self.last_use[name] = self.now

    def advance(self, keeper: TermsKeeper, minutes: int) -> None:
        for _ in range(minutes):
            self.now += MINUTE
            keeper.update()


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Replace Ray's key-value store by a dictionary, and let the test call the updates."""
    values: dict[str, bytes] = {}

    def put(key: str, value: bytes, overwrite: bool) -> None:
        values[key] = value

    def keys(prefix: str) -> list[bytes]:
        return [key.encode() for key in values if key.startswith(prefix)]

    monkeypatch.setattr(internal_kv, "_internal_kv_put", put)
    monkeypatch.setattr(internal_kv, "_internal_kv_get", values.get)
    monkeypatch.setattr(internal_kv, "_internal_kv_del", lambda key: values.pop(key, None))
    monkeypatch.setattr(internal_kv, "_internal_kv_list", keys)
    monkeypatch.setattr(TermsKeeper, "_run", lambda self: None)
    monkeypatch.setattr(ledger, "idle_s", lambda name: None)
    return values


@pytest.fixture
def world() -> World:
    return World()


def test_each_service_stops_at_its_own_time_and_others_run_on(world: World) -> None:
    keeper = world.keeper()
    world.deploy("leased", Terms(lease_minutes=30))
    world.deploy("unused", Terms(idle_minutes=20))
    world.deploy("priced", Terms(dollars_per_replica_hour={"priced": 2.0}))
    world.running["other"] = "running"
    keeper.update()
    world.advance(keeper, 19)
    assert world.stopped == []
    world.advance(keeper, 1)
    assert set(world.stopped) == {"unused"}
    world.advance(keeper, 10)
    assert set(world.stopped) == {"unused", "leased"}
    assert world.running["priced"] == world.running["other"] == "running"


def test_a_keeper_that_is_started_again_continues(world: World) -> None:
    first = world.keeper()
    world.deploy("llm", Terms(lease_minutes=30))
    first.update()
    world.advance(first, 26)
    second = world.keeper()
    world.advance(second, 3)
    state = terms_store.load_state("llm")
    assert len(state.messages) == 1  # the warning, which is not repeated
    world.advance(second, 1)
    assert world.stopped == ["llm"]


def test_new_terms_start_a_new_period(world: World) -> None:
    keeper = world.keeper()
    world.deploy("llm", Terms(lease_minutes=30))
    keeper.update()
    world.advance(keeper, 29)
    world.deploy("llm", Terms(lease_minutes=30))
    world.advance(keeper, 30)
    assert world.stopped == []
    world.advance(keeper, 1)
    assert world.stopped == ["llm"]


def test_a_stop_is_repeated_until_the_service_is_gone_and_its_reason_stays(
    world: World, store: dict[str, bytes]
) -> None:
    keeper = world.keeper()
    world.deploy("llm", Terms(lease_minutes=10))
    keeper.update()
    world.advance(keeper, 12)
    assert world.stopped == ["llm"] * 3
    del world.running["llm"]
    world.advance(keeper, 2)
    assert world.stopped == ["llm"] * 3
    assert terms_store.all_terms() == {}
    assert terms_store.load_state("llm").stopped == "llm stopped: its lease of 10 min ended"
    terms_store.forget("llm")
    assert store == {}


def test_terms_of_a_service_that_has_not_started_wait_for_it(world: World) -> None:
    keeper = world.keeper()
    terms_store.save_terms("llm", Terms(lease_minutes=10))
    world.advance(keeper, 60)
    world.running["llm"] = "deploying"
    world.advance(keeper, 10)
    assert world.stopped == []
    world.advance(keeper, 1)
    assert world.stopped == ["llm"]


def serve_application(running: int = 2) -> dict[str, object]:
    """Return Serve's description of an application, as far as it is read."""
    replicas = [{"state": "RUNNING"}] * running + [{"state": "STARTING"}]
    config = {"deployment_config": {"user_config": {"owner": "ada@hub", "fingerprint": "f"}}}
    engine = {"status": "HEALTHY", "target_num_replicas": 3, "replicas": replicas, **config}
    router = {**engine, "target_num_replicas": 1, "replicas": [{"state": "RUNNING"}]}
    return {"status": "RUNNING", "deployments": {"tiny": engine, "router": router}}


def test_the_status_tells_what_is_left_and_what_it_costs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    details = {"applications": {"llm": serve_application()}}
    monkeypatch.setattr(status, "serve_details", lambda timeout_s: details)
    prices = {"tiny": 1.5}
    world.deploy("llm", Terms(lease_minutes=60, idle_minutes=20, dollars_per_replica_hour=prices))
    before = status.service_status("llm")
    assert (before.lease_left_s, before.stops_in_s) == (3600, 1200)
    keeper = world.keeper()
    keeper.update()
    world.advance(keeper, 12)
    after = status.service_status("llm")
    assert after == before  # passing time is no change of a service
    assert (after.idle_s, after.lease_left_s, after.stops_in_s) == (720, 2880, 480)
    assert after.dollars_per_hour == 4.5  # three replicas, one of them starting
    assert str(after).endswith(
        ", idle for 12 min, 48 min of its lease left, stops in 8 min without a request, "
        "$4.5 per hour"
    )
    (summary,) = list_services()
    assert summary.replicas == 2
    assert (summary.owner, summary.models, summary.uptime_s) == ("ada@hub", "", None)
    assert (summary.lease_left_s, summary.stops_in_s) == (2880, 480)


def test_a_service_that_stopped_says_why(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "serve_details", lambda timeout_s: None)
    with pytest.raises(EndpointGoneError, match="runs no such service"):
        status.service_status("llm")
    keeper = world.keeper()
    world.deploy("llm", Terms(idle_minutes=10))
    keeper.update()
    world.advance(keeper, 10)
    with pytest.raises(EndpointGoneError, match=r"^llm stopped: no request for 10 min\. Deploy it"):
        status.service_status("llm")


def test_a_service_without_terms_has_no_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    details = {"applications": {"llm": serve_application()}}
    monkeypatch.setattr(status, "serve_details", lambda timeout_s: details)
    monkeypatch.setattr(ledger, "idle_s", lambda name: 42.0)
    shown = status.service_status("llm")
    assert (shown.idle_s, shown.stops_in_s, shown.dollars_per_hour) == (42, None, None)
    assert str(shown) == "llm is running (tiny: 2 of 3 running; router: 1 of 1 running)"
