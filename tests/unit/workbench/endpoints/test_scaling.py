"""Waiting until a service has scaled, against scripted sequences of its status."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr

from serving.cluster.connection import Cluster
from serving.errors import DeployError, EndpointGoneError, SpecError
from serving.spec.disaggregated import Disaggregated
from serving.spec.model import ModelSpec
from serving.spec.service import ServiceSpec
from workbench.endpoints import scaling
from workbench.endpoints.deployed import Endpoint

MODEL = "tiny-llama-glossary"


def state(target: int, running: int, starting: int = 0, stopping: int = 0) -> Any:
    counts = {"target": target, "running": running, "starting": starting, "stopping": stopping}
    return SimpleNamespace(deployments={MODEL: SimpleNamespace(**counts)})


class Script:
    """Returns one status after the other, then the last one again and again."""

    def __init__(self, statuses: Sequence[Any]) -> None:
        self.statuses = list(statuses)
        self.reads = 0

    def __call__(self) -> Any:
        status = self.statuses[min(self.reads, len(self.statuses) - 1)]
        self.reads += 1
        if isinstance(status, Exception):
            raise status
        return status


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "POLL_S", 0.0)


@pytest.fixture
def make_endpoint(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Endpoint, Script]]:
    def make(*statuses: Any) -> tuple[Endpoint, Script]:
        script = Script(statuses)
        endpoint = Endpoint(ServiceSpec(), Cluster("127.0.0.1:6379"), 8000, SecretStr("none"))
        monkeypatch.setattr(endpoint, "status", script)
        return endpoint, script

    return make


def test_returns_once_the_replicas_run_and_none_is_on_its_way(make_endpoint: Any) -> None:
    endpoint, script = make_endpoint(
        state(3, 1, starting=2),
        state(3, 2, starting=1),
        state(3, 3),  # as many as in the end, but not yet asked to go down
        state(2, 3),
        state(2, 2, stopping=1),
        state(2, 2),
    )
    asyncio.run(endpoint.wait_until_scaled(2))
    assert script.reads == 6


def test_waits_for_zero_replicas(make_endpoint: Any) -> None:
    endpoint, script = make_endpoint(state(1, 1), state(0, 0, stopping=1), state(0, 0))
    asyncio.run(endpoint.wait_until_scaled(0))
    assert script.reads == 3


def test_one_replica_is_the_default(make_endpoint: Any) -> None:
    endpoint, script = make_endpoint(state(2, 2), state(1, 1))
    asyncio.run(endpoint.wait_until_scaled())
    assert script.reads == 2


def test_timeout_names_the_deployment_and_its_replicas(make_endpoint: Any) -> None:
    endpoint, _ = make_endpoint(state(4, 2, starting=1, stopping=3))
    with pytest.raises(DeployError) as caught:
        asyncio.run(endpoint.wait_until_scaled(1, timeout_s=0.05))
    assert str(caught.value) == (
        f"{MODEL} must reach 1 replica(s) within 0.05 s, got 2 running, 1 starting and 3 stopping "
        "of target 4; stop the load, or raise timeout_s"
    )


def test_deleted_service_ends_the_wait(make_endpoint: Any) -> None:
    endpoint, _ = make_endpoint(state(1, 0), EndpointGoneError("llm: the cluster is gone"))
    with pytest.raises(EndpointGoneError):
        asyncio.run(endpoint.wait_until_scaled(1))


def test_a_disaggregated_model_is_not_rescaled_as_one() -> None:
    spec = ServiceSpec(model=ModelSpec(disaggregated=Disaggregated()))
    with pytest.raises(SpecError, match=r"disaggregated\.prefill\.scaling and"):
        scaling.rescaled(spec, {"max_replicas": 2})
