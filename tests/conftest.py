"""One deployment of the embedded model, shared by every test that needs an engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from workbench.endpoint import Endpoint, deploy

MAX_ONGOING = 8
MAX_QUEUED = 8


@dataclass
class Deployed:
    """The shared endpoint, and the progress lines its deployment gave."""

    endpoint: Endpoint
    progress: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def deployed() -> Iterator[Deployed]:
    """A real vLLM engine on the direct path, with small limits so that tests can reach them."""
    from workbench import ModelSpec, ScalingSpec, ServiceSpec

    scaling = ScalingSpec(
        target_ongoing_requests=4, max_ongoing_requests=MAX_ONGOING, max_queued_requests=MAX_QUEUED
    )
    model = ModelSpec(max_model_len=1024, scaling=scaling)
    spec = ServiceSpec(name="shared", port=0, model=model)
    lines: list[str] = []
    with deploy(spec, progress=lines.append) as endpoint:
        endpoint.client.models.list()
        yield Deployed(endpoint, lines)


@pytest.fixture
def endpoint(deployed: Deployed) -> Endpoint:
    """The shared endpoint."""
    return deployed.endpoint


@pytest.fixture(scope="session")
def truncated_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with its weights cut off: the engine dies while it loads them."""
    import shutil

    from serving.tiny import tiny_model_path

    folder = tmp_path_factory.mktemp("models") / "truncated"
    shutil.copytree(tiny_model_path(), folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1_000_000])
    return folder
