"""One deployment of the embedded model, shared by every test that needs an engine."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from support.shared_service import MAX_ONGOING, MAX_QUEUED, Deployed

from workbench.endpoints.deployed import Endpoint, deploy

if TYPE_CHECKING:
    from support.gate_server import Server

# A job in a shell's background ignores Ctrl-C, and so would every process that a test interrupts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("shared machine", deadline=None)  # no test asserts a time
settings.load_profile("shared machine")

exit_statuses: list[int] = []
"""The exit status of a session that has imported Ray, once it is known."""


@atexit.register
def exit_as_workers_of_ray_do() -> None:
    """End the process before C++ destroys the objects that Ray's remaining threads use.

    This function is registered first, so it runs after all others. A session whose tests had all
    passed once ended with a segmentation fault.
    """
    if exit_statuses:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_statuses[-1])


def pytest_sessionfinish(exitstatus: int) -> None:
    if "ray._raylet" in sys.modules and "PYTEST_XDIST_WORKER" not in os.environ:
        exit_statuses.append(int(exitstatus))


SHARED = pytest.StashKey[ExitStack]()
LAST = pytest.StashKey[pytest.Item | None]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SHARED] = ExitStack()


def is_sharing(item: pytest.Item) -> bool:
    """Whether it uses the session's one cluster."""
    return bool({"deployed", "ray_alone"} & set(getattr(item, "fixturenames", ())))


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark the tests of the shared deployment; make runs all others with an engine beside them."""
    if "deployed" in getattr(item, "fixturenames", ()):
        item.add_marker("shared_cluster")


def is_long(item: pytest.Item) -> bool:
    """Whether only `make test-all` runs it."""
    return any(item.get_closest_marker(name) for name in ("slow", "browser"))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run the tests that share the cluster first and in one sequence, so that it is never idle.

    They also precede the tests that import `ray.serve`, which must not happen before `deploy`.
    """
    items.sort(key=lambda item: (not is_sharing(item), is_long(item)))
    config.stash[LAST] = next((item for item in reversed(items) if is_sharing(item)), None)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """The shared deployment ends with its last test: idle, it takes a third of a core."""
    if item is item.config.stash[LAST]:
        item.config.stash[SHARED].close()


@pytest.fixture(scope="session")
def deployed(request: pytest.FixtureRequest) -> Iterator[Deployed]:
    """A real vLLM engine on the direct path, with small limits so that tests can reach them."""
    from workbench import ModelSpec, ScalingSpec, ServiceSpec

    scaling = ScalingSpec(
        target_ongoing_requests=4, max_ongoing_requests=MAX_ONGOING, max_queued_requests=MAX_QUEUED
    )
    model = ModelSpec(max_model_len=1024, scaling=scaling)
    spec = ServiceSpec(name="shared", port=0, model=model)
    lines: list[str] = []
    with request.config.stash[SHARED] as ends:
        endpoint = ends.enter_context(deploy(spec, progress=lines.append))
        endpoint.client.models.list()
        yield Deployed(endpoint, lines)


@pytest.fixture
def endpoint(deployed: Deployed) -> Endpoint:
    """The shared endpoint."""
    return deployed.endpoint


@pytest.fixture
def url(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of the shared endpoint, whose key is in the environment."""
    monkeypatch.setenv("LLM_WORKBENCH_API_KEY", endpoint.api_key.get_secret_value())
    return endpoint.base_url


@pytest.fixture(scope="session")
def mismatched_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose weights are not of the shapes that its config.json describes.

    All of its files are whole, so only the engine finds the fault when it loads the weights.
    """
    import json
    import shutil

    from serving.models.embedded import tiny_model_path

    folder = tmp_path_factory.mktemp("models") / "mismatched"
    shutil.copytree(tiny_model_path(name="nano"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] *= 2
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def ray_alone() -> Iterator[None]:
    """Ray without a service, unless the session has it already."""
    from serving.cluster import connection

    ours = connection.current() is None
    if ours:
        connection.connect()
    yield
    if ours:
        connection.disconnect()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A thread that serves gates on real sockets."""
    from support.gate_server import Server

    started = Server()
    yield started
    started.stop()
