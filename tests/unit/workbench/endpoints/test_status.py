"""The status of a service, with what Serve reports replaced."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from serving.cluster import connection
from serving.cluster.connection import Cluster
from serving.deploy import status
from serving.deploy.status import ServiceStatus
from serving.spec.model import ModelSpec
from serving.spec.service import ServiceSpec
from workbench.endpoints.deployed import Endpoint


@pytest.mark.parametrize(
    ("frontend", "text"),
    [
        ("python", ""),
        ("rust", "\ntiny: vLLM's HTTP front end in Rust: model.frontend is 'rust'"),
        ("auto", "\ntiny: vLLM's HTTP front end in Python: /nowhere/vllm-rs is not a program. "),
    ],
)
def test_it_names_a_front_end_that_is_not_the_default_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, frontend: str, text: str
) -> None:
    cluster = Cluster("127.0.0.1:6379")
    monkeypatch.setattr(connection, "current", lambda: cluster)
    monkeypatch.setattr(status, "service_status", lambda name: ServiceStatus(name, "running", {}))
    path = {"VLLM_RUST_FRONTEND_PATH": "/nowhere/vllm-rs"}
    model = ModelSpec.model_validate({"id": "tiny", "frontend": frontend, "env": path})
    endpoint = Endpoint(ServiceSpec(model=model), cluster, 8000, SecretStr("none"))
    found = str(endpoint.status())
    assert found.startswith(f"llm is running{text}")
    assert ("\n" in found) == bool(text)
