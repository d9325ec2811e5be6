"""Manifests against Ray's own schema and KubeRay's, the example kept, and one really deployed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from support.paths import ROOT
from support.ray_head import Head, plain_head

from serving.cluster.ports import free_port
from serving.deploy.app import spec_from
from serving.deploy.kuberay import pods_of_a_replica
from serving.deploy.manifest import ray_service, read_spec, serve_config, write
from serving.errors import SpecError
from serving.spec.baseline import BaselineSpec
from serving.spec.model import ModelSpec
from serving.spec.pipeline import PipelineSpec
from serving.spec.router import RouterSpec
from serving.spec.scaling import ScalingSpec
from serving.spec.service import EndpointSpec, ServiceSpec
from workbench.__main__ import main

DEPLOY = ROOT / "deploy"
KEY = "sk-a-key-of-enough-length"
HASH = hashlib.sha256(KEY.encode()).hexdigest()
CALLERS = {"key_hashes": [HASH]}
TENANTS = {"tenants": [{"name": "ada", "key_hash": HASH, "requests_per_minute": 60}]}
IMAGE = "registry.example/workbench:1"

GPU = ModelSpec(
    source="org/large",
    accelerator="gpu",
    accelerator_type="H100",
    tensor_parallel_size=4,
    pipeline_parallel_size=2,
    num_cpus=2,
    routing="prefix_aware",
    scaling=ScalingSpec(min_replicas=1, max_replicas=3),
)
SPECS: dict[str, EndpointSpec] = {
    "plain": ServiceSpec(),
    "sleepy": ServiceSpec(name="sleepy", model=ModelSpec(scaling=ScalingSpec(min_replicas=0))),
    "gpu": ServiceSpec(name="gpu", route_prefix="/gpu", model=GPU),
    "pipeline": PipelineSpec(
        name="two", models=(ModelSpec(id="a"), ModelSpec(id="b")), router=RouterSpec()
    ),
}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("LLM_WORKBENCH_API_KEY", raising=False)


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> EndpointSpec:
    return SPECS[request.param]


class TestServeConfig:
    def test_rays_own_schema_takes_it(self, spec: EndpointSpec) -> None:
        from ray.serve.schema import ServeDeploySchema

        read = ServeDeploySchema.model_validate(yaml.safe_load(write("serve", spec, "", CALLERS)))
        (application,) = read.applications
        assert application.name == spec.name
        assert application.route_prefix == spec.route_prefix
        assert application.import_path == "serving.deploy.app:build"

    @pytest.mark.parametrize("callers", [CALLERS, TENANTS])
    def test_its_arguments_are_the_same_spec(
        self, spec: EndpointSpec, callers: dict[str, Any]
    ) -> None:
        text = write("serve", spec, "", callers)
        arguments = yaml.safe_load(text)["applications"][0]["args"]
        found, who = spec_from(arguments)
        assert found.model_copy(update={"port": spec.port}) == spec
        assert who == callers
        assert KEY not in text

    def test_what_serve_reads_when_it_starts(self) -> None:
        def variables(spec: EndpointSpec) -> dict[str, str]:
            config = serve_config(spec, CALLERS)
            found: dict[str, str] = config["controller_options"]["runtime_env"]["env_vars"]
            return found

        assert variables(SPECS["plain"])["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
        forward = "RAY_SERVE_INGRESS_REQUEST_ROUTER_FORWARD_BODY"
        assert forward not in variables(SPECS["plain"])
        assert variables(SPECS["gpu"])[forward] == "1"


def containers(document: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = document["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [one for group in groups for one in group["template"]["spec"]["containers"]]


class TestRayService:
    def test_kuberays_schema_takes_it(self, spec: EndpointSpec) -> None:
        for callers in (CALLERS, {}):
            document = yaml.safe_load(write("kuberay", spec, IMAGE, callers))
            assert violations(document) == []

    def test_and_would_refuse_a_wrong_one(self) -> None:
        document = ray_service(SPECS["plain"], IMAGE, {})
        cluster = document["spec"]["rayClusterConfig"]
        cluster["workerGroupSpecs"][0]["minReplicas"] = "one"
        cluster["headGroupSpecs"] = {}
        assert len(violations(document)) == 2

    def test_its_serve_config_is_one(self, spec: EndpointSpec) -> None:
        from ray.serve.schema import ServeDeploySchema

        inside = yaml.safe_load(ray_service(spec, IMAGE, CALLERS)["spec"]["serveConfigV2"])
        read = ServeDeploySchema.model_validate(inside)
        assert (read.http_options.host, read.http_options.port) == ("0.0.0.0", 8000)

    def test_every_pod_has_probes_and_no_privileges(self, spec: EndpointSpec) -> None:
        document = ray_service(spec, IMAGE, {})
        for one in containers(document):
            assert one["image"] == IMAGE
            assert one["readinessProbe"]["httpGet"]["path"] == "/api/healthz"
            assert one["livenessProbe"]["httpGet"]["port"] == 52365
            assert one["securityContext"]["allowPrivilegeEscalation"] is False
        assert '"runAsNonRoot": true' in json.dumps(document)

    def test_keys_come_from_a_secret_or_as_hashes(self, spec: EndpointSpec) -> None:
        for one in containers(ray_service(spec, IMAGE, {})):
            variables = {v["name"]: v for v in one["env"]}
            secret = variables["LLM_WORKBENCH_KEY_HASHES"]["valueFrom"]["secretKeyRef"]
            assert secret == {"name": f"{spec.name}-keys", "key": "key-hashes"}
            hub = variables["HF_TOKEN"]["valueFrom"]["secretKeyRef"]
            assert hub == {"name": f"{spec.name}-hub", "key": "token", "optional": True}
        given = write("kuberay", spec, IMAGE, CALLERS)
        assert HASH in given
        assert "LLM_WORKBENCH_KEY_HASHES" not in given

    def test_gpus_of_a_pod_and_bounds_of_the_autoscaler(self) -> None:
        (group,) = ray_service(SPECS["gpu"], IMAGE, {})["spec"]["rayClusterConfig"][
            "workerGroupSpecs"
        ]
        # TP 4 in a pod, two stages a replica, one to three replicas.
        resources = group["template"]["spec"]["containers"][0]["resources"]
        assert resources["limits"]["nvidia.com/gpu"] == "4"
        assert resources["limits"]["cpu"] == "9"
        assert (group["minReplicas"], group["maxReplicas"]) == (2, 6)
        assert json.loads(json.loads(group["rayStartParams"]["resources"])) == {
            "accelerator_type:H100": 1
        }

    @pytest.mark.parametrize(
        ("model", "expected"),
        [
            ({"tensor_parallel_size": 2}, (2, 1.0)),
            ({"accelerator": "gpu", "num_gpus": 0.4}, (2, 0.5)),
            ({"accelerator": "gpu", "tensor_parallel_size": 8}, (8, 1.0)),
            ({"accelerator": "gpu", "data_parallel_size": 2}, (1, 2.0)),
        ],
    )
    def test_pods_of_a_replica(self, model: dict[str, Any], expected: tuple[int, float]) -> None:
        assert pods_of_a_replica(ModelSpec(**model)) == expected

    def test_a_pipelines_helpers_have_a_pod(self) -> None:
        groups = ray_service(SPECS["pipeline"], IMAGE, {})["spec"]["rayClusterConfig"][
            "workerGroupSpecs"
        ]
        assert [group["groupName"] for group in groups] == ["a", "b", "helpers"]


class TestRefusals:
    def test_a_baseline(self) -> None:
        with pytest.raises(SpecError, match="BaselineSpec"):
            serve_config(BaselineSpec(), CALLERS)

    def test_a_folder_of_this_machine(self) -> None:
        spec = ServiceSpec(model=ModelSpec(source="./models/mine"))
        with pytest.raises(SpecError, match=r"'\./models/mine' is a folder of this machine"):
            serve_config(spec, CALLERS)

    def test_a_key_instead_of_its_hash(self) -> None:
        with pytest.raises(SpecError) as caught:
            serve_config(ServiceSpec(), {"key_hashes": [KEY]})
        assert KEY not in str(caught.value)

    def test_sizes_that_do_not_divide(self) -> None:
        with pytest.raises(SpecError, match="4 attention heads"):
            serve_config(ServiceSpec(model=ModelSpec(tensor_parallel_size=3)), CALLERS)

    def test_no_key_at_all(self) -> None:
        with pytest.raises(SpecError, match="LLM_WORKBENCH_API_KEY"):
            write("serve", ServiceSpec(), "", {})

    @pytest.mark.parametrize("text", ["- a\n", "a: [", "", "prot: 1\n"])
    def test_a_file_that_is_no_spec(self, tmp_path: Path, text: str) -> None:
        file = tmp_path / "spec.yaml"
        file.write_text(text)
        with pytest.raises(SpecError):
            read_spec(file)
        with pytest.raises(SpecError, match="cannot be read"):
            read_spec(tmp_path / "none.yaml")


class TestTheCommand:
    def test_the_example_is_what_it_writes(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["manifest", str(DEPLOY / "service-example.yaml"), "--kind", "kuberay"]) == 0
        assert capsys.readouterr().out == (DEPLOY / "rayservice-example.yaml").read_text()

    def test_the_key_of_the_environment_leaves_as_a_hash(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LLM_WORKBENCH_API_KEY", KEY)
        (tmp_path / "spec.yaml").write_text("name: mine\n")
        out = tmp_path / "config.yaml"
        command = ["manifest", str(tmp_path / "spec.yaml"), "--kind", "serve", "--out", str(out)]
        assert main(command) == 0
        assert KEY not in out.read_text()
        assert yaml.safe_load(out.read_text())["applications"][0]["args"]["key_hashes"] == [HASH]

    def test_a_bad_spec_is_one_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "spec.yaml").write_text("prot: 1\n")
        assert main(["manifest", str(tmp_path / "spec.yaml"), "--kind", "serve"]) != 0
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


class TestTheImage:
    """No daemon builds it here, so its text is held to what it promises."""

    text = (DEPLOY / "Dockerfile").read_text()

    def instructions(self) -> list[tuple[str, str]]:
        joined = re.sub(r"\\\n", " ", self.text)
        lines = [line.strip() for line in joined.splitlines()]
        found = [line.partition(" ") for line in lines if line and not line.startswith("#")]
        return [(name, rest.strip()) for name, _, rest in found]

    def test_its_base_is_pinned_and_of_a_python_that_the_lock_covers(self) -> None:
        (base,) = [rest for name, rest in self.instructions() if name == "FROM"]
        version = re.fullmatch(r"python:(3\.\d+)\.\d+-slim-\w+", base)
        assert version is not None
        assert version[1] in {"3.11", "3.12", "3.13"}

    def test_it_does_not_run_as_root(self) -> None:
        names = [name for name, _ in self.instructions()]
        user = dict(self.instructions())["USER"]
        assert user == "1000"
        assert names.index("USER") > max(i for i, name in enumerate(names) if name == "RUN")

    def test_every_installation_is_of_the_lock_alone(self) -> None:
        installs = re.findall(r"pip install[^&\n]*", re.sub(r"\\\n", " ", self.text))
        code = [one for one in installs if not one.startswith("#")]
        assert len(code) >= 3
        assert all("--no-deps" in one for one in code)

    def test_all_that_it_copies_is_there_and_sent(self) -> None:
        sent = (DEPLOY.parent / ".dockerignore").read_text().splitlines()
        for name, rest in self.instructions():
            if name == "COPY":
                for source in rest.split()[:-1]:
                    assert (DEPLOY.parent / source).exists()
                    assert f"!{source}" in sent

    def test_it_holds_no_secret(self) -> None:
        for name, rest in self.instructions():
            if name in ("ENV", "ARG"):
                assert re.search(r"(?i)token|secret|password|key", rest) is None

    def test_a_linter_agrees_where_there_is_one(self) -> None:
        if (hadolint := shutil.which("hadolint")) is None:
            pytest.skip("hadolint is not installed")
        subprocess.run([hadolint, str(DEPLOY / "Dockerfile")], check=True)


@cache
def kuberay_schema() -> Any:
    """A validator of KubeRay's own; skips where it is not there."""
    from jsonschema import Draft202012Validator

    path = os.environ.get("KUBERAY_CRD")
    if path is None:
        pytest.skip("KUBERAY_CRD names no file: KubeRay's ray.io_rayservices.yaml")
    return Draft202012Validator(crd_schema(Path(path)))


def crd_schema(path: Path) -> dict[str, Any]:
    document = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    (stored,) = [v for v in document["spec"]["versions"] if v["storage"]]
    found: dict[str, Any] = closed(stored["schema"]["openAPIV3Schema"])
    found["properties"]["metadata"] = {"type": "object"}
    return found


def closed(schema: Any) -> Any:
    """The schema as Kubernetes applies it: it drops fields that it does not know, so none may be
    there; `int-or-string` is its own word for two types.
    """
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {name: closed(value) for name, value in schema.items()}
    if plain.get("x-kubernetes-int-or-string"):
        return {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    keeps = plain.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(plain.get("properties"), dict) and "type" in plain and not keeps:
        plain.setdefault("additionalProperties", False)
    return plain


def violations(document: dict[str, Any]) -> list[str]:
    found = kuberay_schema().iter_errors(document)
    return [f"{'.'.join(map(str, one.absolute_path))}: {one.message}" for one in found]


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    """A cluster whose nodes can import our packages, as the image's can."""
    with plain_head(tmp_path, PYTHONPATH=str(DEPLOY.parent)) as found:
        yield found


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_serve_deploy_brings_the_config_up_and_it_answers(head: Head, tmp_path: Path) -> None:
    port = free_port()
    spec = ServiceSpec(name="filed", port=port, model=ModelSpec(max_model_len=256))
    (tmp_path / "config.yaml").write_text(write("serve", spec, "", CALLERS))
    serve = [sys.executable, "-m", "ray.serve.scripts", "deploy", "config.yaml"]
    done = subprocess.run(
        [*serve, "--address", head.dashboard],
        cwd=tmp_path,
        env=os.environ | {"RAY_AUTH_MODE": "token"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    url, bearer = f"http://127.0.0.1:{port}/v1", {"Authorization": f"Bearer {KEY}"}
    body = {"model": "tiny-llama-glossary", "prompt": "a", "max_tokens": 4, "ignore_eos": True}
    answer = until_ready(f"{url}/completions", bearer, body)
    assert answer["usage"]["completion_tokens"] == 4
    assert httpx.get(f"{url}/models").status_code == 401


def until_ready(url: str, headers: dict[str, str], body: dict[str, Any]) -> dict[str, Any]:
    last: Any = None
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        try:
            last = httpx.post(url, headers=headers, json=body, timeout=60)
            if last.status_code == 200:
                found: dict[str, Any] = last.json()
                return found
        except httpx.HTTPError as problem:
            last = problem
        time.sleep(2)
    raise AssertionError(f"no answer: {last!r}")
