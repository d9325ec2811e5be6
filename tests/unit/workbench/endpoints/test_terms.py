"""Deploying under terms, and the messages about a service, with a store in memory."""

from __future__ import annotations

import threading

import pytest
from ray.experimental import internal_kv

import workbench as wb
from serving.cluster import connection
from serving.cluster.connection import Cluster
from serving.deploy import terms_keeper, terms_store
from serving.deploy.terms import Terms, TermsState
from serving.errors import SpecError
from workbench.endpoints import terms as endpoint_terms
from workbench.endpoints.terms import make_terms, pass_on_messages, under_terms

CLUSTER = Cluster("192.0.2.1:6379")
OTHER = Cluster("192.0.2.2:6379")


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    values: dict[str, bytes] = {}

    def put(key: str, value: bytes, overwrite: bool) -> None:
        values[key] = value

    monkeypatch.setattr(internal_kv, "_internal_kv_put", put)
    monkeypatch.setattr(internal_kv, "_internal_kv_get", values.get)
    monkeypatch.setattr(internal_kv, "_internal_kv_del", lambda key: values.pop(key, None))
    monkeypatch.setattr(connection, "current", lambda: CLUSTER)
    monkeypatch.setattr(endpoint_terms, "LISTEN_S", 0.005)
    return values


@pytest.fixture
def keepers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    started: list[str] = []
    monkeypatch.setattr(terms_keeper, "_start_keeper", lambda: started.append("keeper"))
    return started


class TestMakeTerms:
    def test_prices_are_those_of_the_replicas(self) -> None:
        spec = wb.ServiceSpec(model=wb.ModelSpec(num_cpus=2))
        terms = make_terms(spec, 60, None, wb.Prices(cpu_hour=0.5))
        assert terms.dollars_per_replica_hour == {"tiny-llama-glossary": 1.0}
        assert (terms.lease_minutes, terms.idle_minutes, terms.limited) == (60, None, True)

    @pytest.mark.parametrize("name", ["lease_minutes", "idle_minutes"])
    def test_deploy_refuses_a_time_before_anything_starts(self, name: str) -> None:
        lines: list[str] = []
        with pytest.raises(SpecError, match=f"^{name} must be a number of minutes above 0"):
            wb.deploy(progress=lines.append, **{name: 0})  # type: ignore[arg-type]
        assert lines == []


class TestUnderTerms:
    def test_an_actor_is_started_only_for_a_service_that_stops_by_itself(
        self, keepers: list[str]
    ) -> None:
        with under_terms("a", Terms(), CLUSTER):
            assert terms_store.load_terms("a") is None
        with under_terms("b", Terms(dollars_per_replica_hour={"b": 1.0}), CLUSTER):
            pass
        assert keepers == []
        with under_terms("c", Terms(idle_minutes=5), CLUSTER):
            assert terms_store.load_terms("c").idle_minutes == 5
        assert keepers == ["keeper"]

    def test_deploying_without_limits_ends_those_before(self, keepers: list[str]) -> None:
        with under_terms("llm", Terms(idle_minutes=5), CLUSTER):
            pass
        with under_terms("llm", Terms(), CLUSTER):
            pass
        assert terms_store.load_terms("llm") is None

    def test_a_failure_brings_back_the_terms_before(self, keepers: list[str]) -> None:
        before = Terms(lease_minutes=60)
        with under_terms("llm", before, CLUSTER):
            pass
        with pytest.raises(ValueError, match="broken"), under_terms("llm", Terms(), CLUSTER):
            raise ValueError("broken")
        assert terms_store.load_terms("llm") == before

    def test_a_failure_that_ends_the_cluster_leaves_nothing_to_do(
        self, keepers: list[str], monkeypatch: pytest.MonkeyPatch, store: dict[str, bytes]
    ) -> None:
        kept: dict[str, bytes] = {}

        def fail() -> None:
            monkeypatch.setattr(connection, "current", lambda: None)
            kept.update(store)
            raise ValueError("broken")

        with (
            pytest.raises(ValueError, match="broken"),
            under_terms("llm", Terms(lease_minutes=60), CLUSTER),
        ):
            fail()
        assert store == kept


def state(terms: Terms, *messages: str, stopped: str | None = None) -> TermsState:
    return TermsState(terms.id, 0.0, 0.0, 0.0, messages=messages, stopped=stopped)


class Listener:
    """Messages as a notebook shows them."""

    def __init__(self, terms: Terms) -> None:
        self.lines: list[str] = []
        self.changed = threading.Event()
        before = set(threading.enumerate())
        pass_on_messages("llm", terms, CLUSTER, self.receive)
        self.threads = set(threading.enumerate()) - before

    def receive(self, line: str) -> None:
        self.lines.append(line)
        self.changed.set()

    def wait(self) -> None:
        assert self.changed.wait(20)
        self.changed.clear()

    def wait_for_end(self) -> None:
        for thread in self.threads:
            thread.join(20)
            assert not thread.is_alive()


class TestMessages:
    def test_each_is_passed_on_once_until_the_service_stops(self) -> None:
        terms = Terms(lease_minutes=60)
        terms_store.save_terms("llm", terms)
        listener = Listener(terms)
        terms_store.save_state("llm", state(terms, "soon"))
        listener.wait()
        terms_store.save_state("llm", state(terms, "soon", "stopped", stopped="stopped"))
        listener.wait_for_end()
        assert listener.lines == ["soon", "stopped"]

    def test_new_terms_end_the_messages_of_the_old_ones(self) -> None:
        terms, later = Terms(lease_minutes=60), Terms(lease_minutes=60)
        terms_store.save_terms("llm", later)
        terms_store.save_state("llm", state(later, "not for this listener"))
        listener = Listener(terms)
        listener.wait_for_end()
        assert listener.lines == []

    def test_they_end_with_the_connection(self, monkeypatch: pytest.MonkeyPatch) -> None:
        terms = Terms(idle_minutes=60)
        terms_store.save_terms("llm", terms)
        listener = Listener(terms)
        monkeypatch.setattr(connection, "current", lambda: OTHER)
        listener.wait_for_end()

    def test_a_service_that_does_not_stop_needs_no_thread(self) -> None:
        assert Listener(Terms()).threads == set()


def test_without_a_cluster_there_are_no_services(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "current", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    frame = wb.services()
    assert len(frame) == 0
    assert {"models", "replicas", "idle_s", "lease_left_s", "dollars_per_hour"} <= set(frame)
