"""What an endpoint shows, and what `deploy` rejects before it imports anything heavy."""

from __future__ import annotations

import json
import os
import pprint
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from serving.cluster.connection import Cluster
from serving.errors import EndpointGoneError, SpecError
from serving.spec.model import ModelSpec
from serving.spec.pipeline import PipelineSpec
from serving.spec.scaling import ScalingSpec
from serving.spec.service import ServiceSpec
from workbench.endpoints import deployed
from workbench.endpoints.deployed import Endpoint
from workbench.endpoints.scaling import rescaled

KEY = "sk-the-key-that-must-not-show"

DEPLOY = """
import json, os, sys
from workbench import ServiceSpec, WorkbenchError, deploy

arguments, spec = json.load(sys.stdin)
try:
    deploy(ServiceSpec(**spec), progress=lambda line: print("progress", line), **arguments)
except WorkbenchError as error:
    name, text = type(error).__name__, str(error)
heavy = sorted({"ray", "vllm", "torch", "openai", "pandas"} & set(sys.modules))
children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
print(json.dumps([name, text, heavy, children]))
"""


def endpoint(**spec: Any) -> Endpoint:
    return Endpoint(ServiceSpec(**spec), Cluster("127.0.0.1:6379"), 8123, SecretStr(KEY))


class TestEndpoint:
    @pytest.mark.parametrize(
        ("spec", "url"),
        [
            ({}, "http://127.0.0.1:8123/v1"),
            ({"port": 0}, "http://127.0.0.1:8123/v1"),
            ({"route_prefix": "/llm"}, "http://127.0.0.1:8123/llm/v1"),
            ({"route_prefix": "/a/b"}, "http://127.0.0.1:8123/a/b/v1"),
            ({"host": "0.0.0.0"}, "http://127.0.0.1:8123/v1"),
            ({"host": "::"}, "http://127.0.0.1:8123/v1"),
            ({"host": "192.0.2.7"}, "http://192.0.2.7:8123/v1"),
            ({"host": "node.example"}, "http://node.example:8123/v1"),
        ],
    )
    def test_its_url(self, spec: dict[str, Any], url: str) -> None:
        assert endpoint(**spec).base_url == url

    def test_its_models(self) -> None:
        service = endpoint(model=ModelSpec(id="org/mine-1.5"))
        assert service.model_ids == ["org/mine-1.5"]
        assert service.model_id == "org/mine-1.5"
        assert service.deployment == "org--mine-1_5"

    def test_nothing_it_shows_contains_the_key(self) -> None:
        service = endpoint()
        clients = [service.client, service.async_client]
        shown = [repr(service), str(service), f"{service}", pprint.pformat(vars(service))]
        shown += [repr(clients), str(clients), repr(vars(service)), repr(service.api_key)]
        shown += [str(service.api_key), f"{service.api_key}", f"{service.api_key!r}"]
        for text in shown:
            assert KEY not in text
        assert service.base_url in repr(service)
        assert "**" in repr(service)

    def test_its_clients_have_the_address_and_the_key(self) -> None:
        service = endpoint(route_prefix="/llm")
        for client in (service.client, service.async_client):
            assert str(client.base_url) == f"{service.base_url}/"
            assert client.api_key == service.api_key.get_secret_value() == KEY
        assert service.client is service.client

    def test_without_its_cluster_it_has_no_status_and_can_be_deleted(self) -> None:
        with endpoint(name="gone") as service, pytest.raises(EndpointGoneError, match="gone: "):
            service.status()
        service.delete()

    def test_the_requested_spec_has_the_requested_name_and_the_current_scaling(self) -> None:
        requested = ServiceSpec()
        own = requested.model_copy(update={"name": "llm-ada", "route_prefix": "/llm-ada"})
        service = Endpoint(
            own, Cluster("127.0.0.1:6379"), 8123, SecretStr(KEY), requested=requested
        )
        assert service.base_url == "http://127.0.0.1:8123/llm-ada/v1"
        assert service.requested_spec == requested
        service.spec = rescaled(own, {"max_replicas": 3})
        assert service.requested_spec == rescaled(requested, {"max_replicas": 3})

    def test_deleting_it_forgets_its_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(deployed, "_keys", {})
        service = endpoint(name="one")
        for name in ("one", "two"):
            deployed._keys["127.0.0.1:6379", name] = {"owner": SecretStr(KEY)}
        service.delete()
        assert list(deployed._keys) == [("127.0.0.1:6379", "two")]


Rejection = Callable[..., tuple[str, str]]


@pytest.fixture
def rejection(tmp_path: Path) -> Rejection:
    """Deploys in a process where the import of Ray would fail."""
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text("raise AssertionError('Ray was imported')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    return partial(rejected_deploy, {"PYTHONPATH": path})


def rejected_deploy(
    extra: dict[str, str],
    spec: dict[str, Any],
    arguments: dict[str, Any] | None = None,
    **variables: str,
) -> tuple[str, str]:
    """The error's name and message, in a process that has imported and started nothing for it."""
    env = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "LLM_WORKBENCH_API_KEY")}
    ran = subprocess.run(
        [sys.executable, "-c", DEPLOY],
        input=json.dumps([arguments or {}, spec]),
        capture_output=True,
        text=True,
        env=env | extra | variables,
        timeout=200,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    name, text, heavy, children = json.loads(ran.stdout)
    assert (heavy, children) == ([], [])
    return name, text


class TestRejections:
    @pytest.mark.parametrize(
        ("spec", "error", "part"),
        [
            ({"prot": 1}, "SpecError", "ServiceSpec.prot is not a field, got 1"),
            ({"model": {"scaling": {"min_replicas": 2}}}, "SpecError", "min_replicas = 2"),
            ({"model": {"engine_kwargs": {"max_num_seq": 1}}}, "SpecError", "'max_num_seqs'"),
            ({"model": {"source": "./nowhere"}}, "ModelNotFoundError", "'./nowhere'"),
        ],
    )
    def test_an_invalid_spec(
        self, rejection: Rejection, spec: dict[str, Any], error: str, part: str
    ) -> None:
        name, text = rejection(spec)
        assert name == error
        assert part in text

    def test_a_taken_port(self, rejection: Rejection) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            name, text = rejection({"port": port})
        assert name == "PortTakenError"
        assert f"port = {port}" in text

    def test_a_short_key_given_or_from_the_environment(self, rejection: Rejection) -> None:
        for name, text in (
            rejection({}, {"api_key": "secret"}),
            rejection({}, LLM_WORKBENCH_API_KEY="secret"),
        ):
            assert name == "SpecError"
            assert "got 6 characters" in text
            assert "secret" not in text

    def test_missing_ray(self, tmp_path: Path) -> None:
        # A finder that hides one package, as if it had never been installed.
        (tmp_path / "sitecustomize.py").write_text(
            "import importlib.util as u\nreal = u.find_spec\n"
            "u.find_spec = lambda name, *a: None if name == 'ray' else real(name, *a)\n"
        )
        path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": path}
        environment.pop("RAY_ADDRESS", None)
        ran = subprocess.run(
            [sys.executable, "-c", "from workbench import *; deploy(ServiceSpec(port=0))"],
            capture_output=True,
            text=True,
            env=environment,
            timeout=200,
        )
        assert "MissingPackageError: The package 'ray' is not installed" in ran.stderr
        assert "make setup" in ran.stderr


def test_serve_imported_without_its_flag_is_rejected_before_anything_starts() -> None:
    code = (
        "import ray.serve, workbench as wb\n"
        "try:\n    wb.deploy(wb.ServiceSpec(port=0))\n"
        "except wb.WorkbenchError as error:\n    print(type(error).__name__, error)\n"
    )
    without = {k: v for k, v in os.environ.items() if k != "RAY_SERVE_ENABLE_HA_PROXY"}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=without, capture_output=True, text=True, check=True
    )
    assert "ClusterError ray.serve was imported before deploy" in ran.stdout


class TestRescaling:
    def test_only_the_given_fields_change_and_the_number_of_replicas_is_kept(self) -> None:
        scaling = ScalingSpec(max_replicas=4, initial_replicas=2, target_ongoing_requests=3)
        spec = ServiceSpec(model=ModelSpec(scaling=scaling))
        changed = rescaled(spec, {"max_replicas": 5, "target_ongoing_requests": 1.5}).models[0]
        assert changed.scaling == ScalingSpec(max_replicas=5, target_ongoing_requests=1.5)
        assert changed.model_copy(update={"scaling": scaling}) == spec.model

    def test_every_model_of_a_pipeline_changes(self) -> None:
        spec = PipelineSpec(models=(ModelSpec(id="a"), ModelSpec(id="b")))
        assert [m.scaling.max_replicas for m in rescaled(spec, {"max_replicas": 3}).models] == [
            3,
            3,
        ]

    @pytest.mark.parametrize(
        ("scaling", "message"),
        [
            ({"max_replica": 3}, "max_replica is not a field, got 3"),
            ({"max_replicas": 0}, "max_replicas must .*got 0"),
            ({"min_replicas": 0}, "deploy it again"),
        ],
    )
    def test_invalid_scaling_is_rejected(self, scaling: dict[str, Any], message: str) -> None:
        with pytest.raises(SpecError, match=message):
            rescaled(ServiceSpec(), scaling)
