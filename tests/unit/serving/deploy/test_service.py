"""Replacing a running service, with a scripted Serve in place of Ray's."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from ray.serve.schema import ProxyStatus

from serving.cluster.connection import Cluster
from serving.deploy import record, service, status, terms_store
from serving.deploy.deployments import user_config
from serving.errors import DeployError, ModelNotFoundError, ResourcesError
from serving.quotas import actor as ledger
from serving.spec.model import ModelSpec
from serving.spec.pipeline import PipelineSpec
from serving.spec.service import EndpointSpec, ServiceSpec
from serving.spec.tenants import Tenant

OWNER = (Tenant(name="owner", key_hash="0" * 64),)
CLUSTER = Cluster("127.0.0.1:6379")


class ScriptedServe:
    """One application of Serve. A model whose id is in ``failing`` never starts."""

    def __init__(self) -> None:
        self.failing: set[str] = set()
        self.interrupted: set[str] = set()
        self.proxy_states = [ProxyStatus.HEALTHY]
        self.submitted: list[tuple[str, int]] = []
        self.current: tuple[EndpointSpec, tuple[Tenant, ...]] | None = None

    # What Ray Serve offers to the service.
    def RunTarget(self, **target: Any) -> SimpleNamespace:
        return SimpleNamespace(**target)

    def run_many(self, targets: list[Any], wait_for_applications_running: bool) -> None:
        assert not wait_for_applications_running
        spec, tenants, surge_percent = targets[0].target
        self.submitted.append((spec.models[0].model_id, surge_percent))
        self.current = (spec, tenants)

    def status(self) -> SimpleNamespace:
        assert self.current is not None
        spec, name = self.current[0], self.model
        if name in self.interrupted:
            raise KeyboardInterrupt
        message = "The deployment failed. Error:\nThe engine reported:\nValueError: bad weights"
        deployment = SimpleNamespace(
            status="DEPLOY_FAILED" if name in self.failing else "HEALTHY",
            message=message if name in self.failing else "",
            replica_states={},
        )
        state = "DEPLOY_FAILED" if name in self.failing else "RUNNING"
        app = SimpleNamespace(status=state, message="", deployments={name: deployment})
        proxies = {
            "head": self.proxy_states.pop(0) if len(self.proxy_states) > 1 else self.proxy_states[0]
        }
        return SimpleNamespace(applications={spec.name: app}, proxies=proxies)

    @property
    def model(self) -> str:
        assert self.current is not None
        return self.current[0].models[0].model_id

    def details(self) -> dict[str, Any]:
        if self.current is None:
            return {"applications": {}}
        spec, tenants = self.current
        state = "DEPLOY_FAILED" if self.model in self.failing else "RUNNING"
        config = {"deployment_config": {"user_config": user_config(spec, tenants)}}
        application = {"status": state, "deployments": {self.model: config}}
        return {"applications": {spec.name: application}}


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The cluster's key-value store."""
    values: dict[str, bytes] = {}
    monkeypatch.setattr(record, "load_value", values.get)
    monkeypatch.setattr(record, "store_value", values.__setitem__)
    monkeypatch.setattr(record, "delete_value", values.pop)
    monkeypatch.setattr(terms_store, "load_value", values.get)
    monkeypatch.setattr(terms_store, "delete_value", lambda key: values.pop(key, None))
    return values


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, store: dict[str, bytes]) -> ScriptedServe:
    serve = ScriptedServe()
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(serve=serve))
    monkeypatch.setattr(status, "details", serve.details)
    monkeypatch.setattr(service, "check_resources", lambda spec: None)
    monkeypatch.setattr(service, "_start_serve", lambda *arguments: 8000)
    monkeypatch.setattr(service, "application", lambda *arguments: arguments)
    monkeypatch.setattr(ledger, "start_ledger", lambda name: None)
    monkeypatch.setattr(service, "free_resources", lambda: [{"CPU": 8.0}])
    return serve


def spec_of(model_id: str, **fields: Any) -> ServiceSpec:
    return ServiceSpec(name="llm", model=ModelSpec(id=model_id, **fields))


def deploy(spec: EndpointSpec, progress: Callable[[str], None] = lambda line: None) -> int:
    return service.deploy(spec, CLUSTER, OWNER, progress)


def test_a_service_that_does_not_start_is_replaced_by_the_previous_one(
    scripted: ScriptedServe,
) -> None:
    scripted.failing = {"bad"}
    deploy(spec_of("good"))
    lines: list[str] = []
    with pytest.raises(DeployError) as caught:
        deploy(spec_of("bad"), lines.append)
    assert scripted.model == "good"
    assert [model for model, _ in scripted.submitted] == ["good", "bad", "good"]
    assert scripted.current == (spec_of("good"), OWNER)
    first, *_, last = str(caught.value).splitlines()
    assert "a replica of 'bad' did not start" in first
    assert "ValueError: bad weights" in str(caught.value)
    assert last == "The previous service 'llm' (good) is restored and answers."
    assert any("restoring" in line for line in lines)


def test_the_front_end_that_is_not_the_default_is_named_with_the_reason(
    scripted: ScriptedServe,
) -> None:
    lines: list[str] = []
    deploy(spec_of("good"), lines.append)
    assert not any("front end" in line for line in lines)
    auto = spec_of("good", frontend="auto", env={"VLLM_RUST_FRONTEND_PATH": "/nowhere/vllm-rs"})
    deploy(auto, lines.append)
    (line,) = [line for line in lines if "front end" in line]
    assert line.startswith("good: vLLM's HTTP front end in Python: /nowhere/vllm-rs is not a prog")


def test_the_service_before_the_failed_one_is_restored_again_after_a_second_failure(
    scripted: ScriptedServe,
) -> None:
    scripted.failing = {"bad", "worse"}
    deploy(spec_of("good"))
    for model in ("bad", "worse"):
        with pytest.raises(DeployError, match=r"'llm' \(good\) is restored"):
            deploy(spec_of(model))
    assert scripted.model == "good"


def test_if_the_previous_service_does_not_start_either_no_service_answers(
    scripted: ScriptedServe,
) -> None:
    deploy(spec_of("good"))
    original = scripted.run_many

    def run_many(targets: list[Any], wait_for_applications_running: bool) -> None:
        scripted.failing = {"good", "bad"}
        original(targets, wait_for_applications_running)

    scripted.run_many = run_many  # type: ignore[method-assign]
    with pytest.raises(DeployError, match=r"No service answers: the previous one \(good\)"):
        deploy(spec_of("bad"))


def test_a_proxy_that_needs_longer_than_serve_waits_is_waited_for(
    scripted: ScriptedServe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "POLL_S", 0.0)
    original = scripted.run_many

    def run_many(targets: list[Any], wait_for_applications_running: bool) -> None:
        original(targets, wait_for_applications_running)
        raise TimeoutError("Proxies not available after 60s.")

    scripted.run_many = run_many  # type: ignore[method-assign]
    scripted.proxy_states = [ProxyStatus.STARTING, ProxyStatus.UNHEALTHY, ProxyStatus.HEALTHY]
    lines: list[str] = []
    assert deploy(spec_of("good"), lines.append) == 8000
    assert lines == [
        "waiting for Ray Serve's proxy (starting)",
        "waiting for Ray Serve's proxy (unhealthy)",
    ]

    scripted.proxy_states = [ProxyStatus.STARTING]
    hurried = spec_of("good").model_copy(update={"start_timeout_s": 0.01})
    with pytest.raises(DeployError, match=r"start_timeout_s = 0\.01: waiting for Ray"):
        service._wait_until_running(hurried, lines.append)


def test_another_timeout_of_serve_is_an_error(scripted: ScriptedServe) -> None:
    def run_many(targets: list[Any], wait_for_applications_running: bool) -> None:
        raise TimeoutError("the controller does not answer")

    scripted.run_many = run_many  # type: ignore[method-assign]
    with pytest.raises(TimeoutError, match="the controller"):
        deploy(spec_of("good"))


def test_an_interrupted_replacement_is_undone_without_waiting(scripted: ScriptedServe) -> None:
    scripted.interrupted = {"slow"}
    deploy(spec_of("good"))
    with pytest.raises(KeyboardInterrupt):
        deploy(spec_of("slow"))
    assert scripted.model == "good"


def test_an_error_before_the_change_touches_nothing(
    scripted: ScriptedServe, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy(spec_of("good"))

    def reject(*arguments: Any) -> None:
        raise ResourcesError("too large")

    monkeypatch.setattr(service, "end_application", reject)
    monkeypatch.setattr(service, "check_resources", reject)
    with pytest.raises(ResourcesError, match="too large"):
        deploy(spec_of("other"))
    assert scripted.submitted == [("good", 0)]


def test_a_model_that_the_hub_does_not_have_is_rejected_before_the_change(
    scripted: ScriptedServe, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy(spec_of("good"))

    def reject(model: ModelSpec) -> None:
        raise ModelNotFoundError(model.source)

    monkeypatch.setattr(service, "check_hub", reject)
    with pytest.raises(ModelNotFoundError, match="org/none"):
        deploy(spec_of("other", source="org/none"))
    assert scripted.submitted == [("good", 0)]


def test_without_a_previous_service_the_failed_one_is_deleted(
    scripted: ScriptedServe, monkeypatch: pytest.MonkeyPatch
) -> None:
    deleted: list[str] = []
    monkeypatch.setattr(service, "delete", lambda name, cluster: deleted.append(name))
    scripted.failing = {"bad"}
    with pytest.raises(DeployError) as caught:
        deploy(spec_of("bad"))
    assert deleted == ["llm"]
    assert "previous" not in str(caught.value)


def test_an_application_that_this_project_did_not_record_is_not_restored_or_deleted(
    scripted: ScriptedServe, store: dict[str, bytes]
) -> None:
    scripted.failing = {"bad"}
    deploy(spec_of("good"))
    store.clear()
    with pytest.raises(
        DeployError, match="service 'llm' was not deployed from here and was not restored"
    ):
        deploy(spec_of("bad"))
    assert scripted.submitted == [("good", 0), ("bad", 1)]


def test_a_record_of_another_service_than_the_running_one_is_not_used(
    scripted: ScriptedServe,
) -> None:
    scripted.failing = {"bad"}
    deploy(spec_of("good"))
    scripted.current = (spec_of("from-a-manifest"), OWNER)
    with pytest.raises(DeployError, match="was not restored"):
        deploy(spec_of("bad"))


@pytest.mark.parametrize(
    ("free", "surge_percent"),
    [([{"CPU": 1.0}], 1), ([{"CPU": 0.5}, {"CPU": 0.5}], 0), ([], 0)],
)
def test_old_replicas_serve_until_new_ones_are_ready_if_both_fit(
    scripted: ScriptedServe,
    monkeypatch: pytest.MonkeyPatch,
    free: list[dict[str, float]],
    surge_percent: int,
) -> None:
    deploy(spec_of("good"))
    monkeypatch.setattr(service, "free_resources", lambda: free)
    lines: list[str] = []
    deploy(spec_of("good", max_model_len=256), lines.append)
    assert scripted.submitted == [("good", 0), ("good", surge_percent)]
    assert any("no room" in line for line in lines) is not bool(surge_percent)


def test_a_change_that_starts_no_engine_needs_no_room(
    scripted: ScriptedServe, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of("good")
    deploy(spec)
    monkeypatch.setattr(service, "free_resources", list)
    lines: list[str] = []
    deploy(spec.model_copy(update={"cors_origins": ("https://example.com",)}), lines.append)
    assert not any("no room" in line for line in lines)


def test_on_a_local_cluster_both_must_fit_into_memory(
    scripted: ScriptedServe, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = Cluster("127.0.0.1:6379", supervisor=SimpleNamespace())  # type: ignore[arg-type]
    available = SimpleNamespace(available=3 * 2**30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: available)
    service.deploy(spec_of("good"), local, OWNER, lambda line: None)
    for free_gib, model_len in ((3, 256), (30, 512)):
        available.available = free_gib * 2**30
        changed = spec_of("good", max_model_len=model_len)
        service.deploy(changed, local, OWNER, lambda line: None)
    assert [surge for _, surge in scripted.submitted] == [0, 0, 1]


@pytest.mark.parametrize(
    "spec",
    [
        spec_of("good", engine_kwargs={"max_num_seqs": 4}),
        PipelineSpec(name="llm", models=(ModelSpec(id="a"), ModelSpec(id="b"))),
    ],
)
def test_a_record_is_read_back_as_it_was_and_holds_no_key(
    store: dict[str, bytes], spec: EndpointSpec
) -> None:
    tenants = (*OWNER, Tenant(name="other", key_hash="1" * 64, tokens_per_minute=10))
    record.save(spec, tenants)
    assert record.load("llm") == (spec, tenants)
    assert record.load("another") is None
    (text,) = store.values()
    assert json.loads(text)["tenants"][0]["key_hash"] == "0" * 64
    record.forget("llm")
    assert store == {}


def test_application_that_another_process_deleted_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = SimpleNamespace(status=lambda: SimpleNamespace(applications={}, proxies={}))
    monkeypatch.setitem(sys.modules, "ray.serve", gone)
    monkeypatch.setattr("ray.serve", gone, raising=False)
    with pytest.raises(DeployError, match="application llm was replaced or deleted by another"):
        service._wait_until_running(ServiceSpec(), lambda line: None)
