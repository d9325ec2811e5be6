"""Processes that import Ray Serve LLM at the same moment, as replicas that start together do."""

from __future__ import annotations

import time
from typing import Any

import pytest

from serving.compat.ray import delete_value

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("ray_alone"), pytest.mark.timeout(300)]

STARTS, PROCESSES = 50, 4
CONNECTORS = ("LMCacheConnectorV1", "NixlConnector", "MultiConnector", "MoRIIOConnector")


def start_processes() -> list[Any]:
    """Start actors that import Ray's factory of KV connectors again and again."""
    import ray

    # A local class is pickled by value: the actors cannot import this module.
    class Starter:
        def forget(self) -> None:
            """Undo the import, and import all that the factory needs."""
            import sys

            package = "ray.llm._internal.serve"
            sys.modules.pop(f"{package}.engines.vllm.kv_transfer.factory", None)
            sys.modules.pop(f"{package}.utils.registry", None)
            import ray.llm._internal.serve.engines.vllm.kv_transfer.base
            import ray.llm._internal.serve.utils.registry  # noqa: F401

        def start(self, moment: float) -> list[str]:
            """Register the connectors at a moment; return those that are registered."""
            import time

            from serving.compat.kv_connectors import register_kv_connectors

            while time.time() < moment:
                time.sleep(0.0002)
            register_kv_connectors()
            from ray.llm._internal.serve.engines.vllm.kv_transfer import factory

            registered = factory.KVConnectorBackendFactory.is_registered
            return [name for name in CONNECTORS if registered(name)]

    return [ray.remote(num_cpus=0)(Starter).remote() for _ in range(PROCESSES)]


def test_every_one_of_fifty_concurrent_starts_succeeds() -> None:
    import ray

    actors = start_processes()
    for _ in range(STARTS):
        ray.get([actor.forget.remote() for actor in actors])
        for name in CONNECTORS:
            delete_value(f"LLMServeRegistry:serve_global:kv_connector_backend/{name}")
        moment = time.time() + 0.1
        starts = ray.get([actor.start.remote(moment) for actor in actors])
        assert starts == [list(CONNECTORS)] * PROCESSES
    for actor in actors:
        ray.kill(actor)
