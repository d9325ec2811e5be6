"""An engine core that serves two clients."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.engine import core_client
from vllm.v1.engine.utils import EngineZmqAddresses

from serving.compat.vllm_rust import become_python_client, shared_core


def test_the_core_connects_to_the_rust_front_end_first(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(core_client, "launch_core_engines", lambda *args: calls.append(args))
    original = core_client.launch_core_engines
    config = SimpleNamespace(
        scheduler_config=SimpleNamespace(async_scheduling=True, scheduler_cls=None)
    )
    with shared_core("ipc://in", "ipc://out"):
        addresses = EngineZmqAddresses(inputs=["ipc://own-in"], outputs=["ipc://own-out"])
        core_client.launch_core_engines(config, "executor", True, addresses)
    assert calls == [(config, "executor", True, addresses)]
    assert addresses.inputs == ["ipc://in", "ipc://own-in"]
    assert addresses.outputs == ["ipc://out", "ipc://own-out"]
    assert issubclass(config.scheduler_config.scheduler_cls, AsyncScheduler)
    assert core_client.launch_core_engines is original


def test_a_core_that_does_not_start_leaves_the_launcher_as_it_was() -> None:
    original = core_client.launch_core_engines
    with pytest.raises(ZeroDivisionError), shared_core("ipc://in", "ipc://out"):
        _ = 1 / 0
    assert core_client.launch_core_engines is original


def test_requests_in_python_are_those_of_the_second_client() -> None:
    client = SimpleNamespace(engine_core=SimpleNamespace(client_index=0))
    become_python_client(client)
    assert client.engine_core.client_index == 1
