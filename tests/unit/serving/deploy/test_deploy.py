"""What an endpoint shows, and what `deploy` refuses before it imports anything heavy."""

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

REFUSE = """
import json, os, sys
from workbench import ServiceSpec, WorkbenchError, deploy

arguments, spec = json.load(sys.stdin)
try:
    deploy(ServiceSpec(**spec), progress=lambda line: print("said", line), **arguments)
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
    def test_its_address(self, spec: dict[str, Any], url: str) -> None:
        assert endpoint(**spec).base_url == url

    def test_its_model(self) -> None:
        served = endpoint(model=ModelSpec(id="org/mine-1.5"))
        assert served.model_ids == ["org/mine-1.5"]
        assert served.model_id == "org/mine-1.5"
        assert served.deployment == "org--mine-1_5"

    def test_nothing_it_shows_holds_the_key(self) -> None:
        served = endpoint()
        clients = [served.client, served.async_client]
        shown = [repr(served), str(served), f"{served}", pprint.pformat(vars(served))]
        shown += [repr(clients), str(clients), repr(vars(served)), repr(served.api_key)]
        shown += [str(served.api_key), f"{served.api_key}", f"{served.api_key!r}"]
        for text in shown:
            assert KEY not in text
        assert served.base_url in repr(served)
        assert "**" in repr(served)

    def test_its_clients_hold_the_address_and_the_key(self) -> None:
        served = endpoint(route_prefix="/llm")
        for client in (served.client, served.async_client):
            assert str(client.base_url) == f"{served.base_url}/"
            assert client.api_key == served.api_key.get_secret_value() == KEY
        assert served.client is served.client

    def test_of_a_cluster_that_is_gone_says_so_and_can_be_deleted(self) -> None:
        with endpoint(name="gone") as served, pytest.raises(EndpointGoneError, match="gone: "):
            served.status()
        served.delete()

    def test_a_deleted_one_forgets_its_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(deployed, "_keys", {})
        served = endpoint(name="one")
        for name in ("one", "two"):
            deployed._keys["127.0.0.1:6379", name] = {"owner": SecretStr(KEY)}
        served.delete()
        assert list(deployed._keys) == [("127.0.0.1:6379", "two")]


Refused = Callable[..., tuple[str, str]]


@pytest.fixture
def refused(tmp_path: Path) -> Refused:
    """Deploys in a process where the import of Ray would fail."""
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text("raise AssertionError('Ray was imported')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    return partial(deploy_refused, {"PYTHONPATH": path})


def deploy_refused(
    extra: dict[str, str],
    spec: dict[str, Any],
    arguments: dict[str, Any] | None = None,
    **variables: str,
) -> tuple[str, str]:
    """The error's name and message, in a process that has imported and started nothing for it."""
    env = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "LLM_WORKBENCH_API_KEY")}
    told = subprocess.run(
        [sys.executable, "-c", REFUSE],
        input=json.dumps([arguments or {}, spec]),
        capture_output=True,
        text=True,
        env=env | extra | variables,
        timeout=60,
    )
    assert told.returncode == 0, told.stderr[-2000:]
    name, text, heavy, children = json.loads(told.stdout)
    assert (heavy, children) == ([], [])
    return name, text


class TestRefusals:
    @pytest.mark.parametrize(
        ("spec", "error", "named"),
        [
            ({"prot": 1}, "SpecError", "ServiceSpec.prot is not a field, got 1"),
            ({"model": {"scaling": {"min_replicas": 2}}}, "SpecError", "min_replicas = 2"),
            ({"model": {"engine_kwargs": {"max_num_seq": 1}}}, "SpecError", "'max_num_seqs'"),
            ({"model": {"source": "./nowhere"}}, "ModelNotFoundError", "'./nowhere'"),
        ],
    )
    def test_a_bad_spec(
        self, refused: Refused, spec: dict[str, Any], error: str, named: str
    ) -> None:
        name, text = refused(spec)
        assert name == error
        assert named in text

    def test_a_taken_port(self, refused: Refused) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            name, text = refused({"port": port})
        assert name == "PortTakenError"
        assert f"port = {port}" in text

    def test_a_key_that_can_be_guessed_given_or_from_the_environment(
        self, refused: Refused
    ) -> None:
        for name, text in (
            refused({}, {"api_key": "secret"}),
            refused({}, LLM_WORKBENCH_API_KEY="secret"),
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
        told = subprocess.run(
            [sys.executable, "-c", "from workbench import *; deploy(ServiceSpec(port=0))"],
            capture_output=True,
            text=True,
            env=environment,
            timeout=60,
        )
        assert "MissingPackageError: The package 'ray' is not installed" in told.stderr
        assert "make setup" in told.stderr


def test_serve_imported_without_its_flag_is_refused_before_anything_starts() -> None:
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


def test_the_clusters_processes_do_not_inherit_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    from serving.cluster import connection
    from serving.spec import tenants

    monkeypatch.setenv(tenants.KEY_VARIABLE, "sk-a-key-of-enough-length")
    assert tenants.KEY_VARIABLE not in connection._inherited()
    assert connection._inherited()["PATH"] == os.environ["PATH"]


class TestRescaling:
    def test_only_what_is_named_changes_and_replicas_start_from_where_they_are(self) -> None:
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
    def test_what_is_no_scaling_is_refused(self, scaling: dict[str, Any], message: str) -> None:
        with pytest.raises(SpecError, match=message):
            rescaled(ServiceSpec(), scaling)
