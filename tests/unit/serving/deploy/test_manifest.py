"""Manifests: Ray's and KubeRay's schemas accept them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.paths import ROOT

from serving.deploy.arguments import spec_from
from serving.deploy.kuberay import pods_of_a_replica
from serving.deploy.manifest import ray_service, read_spec, serve_config, write
from serving.errors import SpecError
from serving.spec.baseline import BaselineSpec
from serving.spec.disaggregated import Disaggregated, Side
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
    "sleeps": ServiceSpec(name="sleeps", model=ModelSpec(scaling=ScalingSpec(min_replicas=0))),
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
    def test_rays_schema_accepts_it(self, spec: EndpointSpec) -> None:
        from ray.serve.schema import ServeDeploySchema

        config = ServeDeploySchema.model_validate(yaml.safe_load(write("serve", spec, "", CALLERS)))
        (application,) = config.applications
        assert application.name == spec.name
        assert application.route_prefix == spec.route_prefix
        assert application.import_path == "serving.deploy.app:build"

    @pytest.mark.parametrize("callers", [CALLERS, TENANTS])
    def test_its_arguments_give_the_same_spec(
        self, spec: EndpointSpec, callers: dict[str, Any]
    ) -> None:
        text = write("serve", spec, "", callers)
        arguments = yaml.safe_load(text)["applications"][0]["args"]
        read, read_callers = spec_from(arguments)
        assert read.model_copy(update={"port": spec.port}) == spec
        assert read_callers == callers
        assert KEY not in text

    def test_it_has_the_variables_that_serve_reads_when_it_starts(self) -> None:
        def variables(spec: EndpointSpec) -> dict[str, str]:
            config = serve_config(spec, CALLERS)
            env_vars: dict[str, str] = config["controller_options"]["runtime_env"]["env_vars"]
            return env_vars

        assert variables(SPECS["plain"])["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
        forward = "RAY_SERVE_INGRESS_REQUEST_ROUTER_FORWARD_BODY"
        assert forward not in variables(SPECS["plain"])
        assert variables(SPECS["gpu"])[forward] == "1"


def containers(document: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = document["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [container for group in groups for container in pod(group)["containers"]]


def pod(group: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = group["template"]["spec"]
    return spec


def worker_groups(document: dict[str, Any]) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = document["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    return groups


class TestRayService:
    def test_kuberays_schema_accepts_it(self, spec: EndpointSpec) -> None:
        for callers in (CALLERS, {}):
            document = yaml.safe_load(write("kuberay", spec, IMAGE, callers))
            assert violations(document) == []

    def test_kuberays_schema_rejects_an_invalid_one(self) -> None:
        document = ray_service(SPECS["plain"], IMAGE, {})
        cluster = document["spec"]["rayClusterConfig"]
        cluster["workerGroupSpecs"][0]["minReplicas"] = "one"
        cluster["headGroupSpecs"] = {}
        assert len(violations(document)) == 2

    def test_its_serve_config_is_valid(self, spec: EndpointSpec) -> None:
        from ray.serve.schema import ServeDeploySchema

        inside = yaml.safe_load(ray_service(spec, IMAGE, CALLERS)["spec"]["serveConfigV2"])
        config = ServeDeploySchema.model_validate(inside)
        assert (config.http_options.host, config.http_options.port) == ("0.0.0.0", 8000)

    def test_every_pod_has_probes_and_no_privileges(self, spec: EndpointSpec) -> None:
        document = ray_service(spec, IMAGE, {})
        for container in containers(document):
            assert container["image"] == IMAGE
            assert container["readinessProbe"]["httpGet"]["path"] == "/api/healthz"
            assert container["livenessProbe"]["httpGet"]["port"] == 52365
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert '"runAsNonRoot": true' in json.dumps(document)

    def test_hashes_of_keys_come_from_a_secret_or_are_written(self, spec: EndpointSpec) -> None:
        for container in containers(ray_service(spec, IMAGE, {})):
            variables = {v["name"]: v for v in container["env"]}
            secret = variables["LLM_WORKBENCH_KEY_HASHES"]["valueFrom"]["secretKeyRef"]
            assert secret == {"name": f"{spec.name}-keys", "key": "key-hashes"}
            hub = variables["HF_TOKEN"]["valueFrom"]["secretKeyRef"]
            assert hub == {"name": f"{spec.name}-hub", "key": "token", "optional": True}
        given = write("kuberay", spec, IMAGE, CALLERS)
        assert HASH in given
        assert "LLM_WORKBENCH_KEY_HASHES" not in given

    def test_a_group_has_the_gpus_of_a_pod_and_the_bounds_of_the_autoscaler(self) -> None:
        (group,) = worker_groups(ray_service(SPECS["gpu"], IMAGE, {}))
        # TP 4 in a pod, two stages per replica, one to three replicas.
        resources = pod(group)["containers"][0]["resources"]
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

    def test_the_auxiliary_deployments_of_a_pipeline_have_a_pod(self) -> None:
        groups = worker_groups(ray_service(SPECS["pipeline"], IMAGE, {}))
        assert [group["groupName"] for group in groups] == ["a", "b", "helpers"]


class TestRejections:
    def test_a_baseline(self) -> None:
        with pytest.raises(SpecError, match="BaselineSpec"):
            serve_config(BaselineSpec(), CALLERS)

    def test_a_folder_of_this_machine(self) -> None:
        spec = ServiceSpec(model=ModelSpec(source="./models/mine"))
        with pytest.raises(SpecError, match=r"'\./models/mine' is on this machine"):
            serve_config(spec, CALLERS)

    def test_the_text_of_a_template_travels_in_the_manifest(self, tmp_path: Path) -> None:
        file = tmp_path / "template.jinja"
        file.write_text("{{ messages[0].content }}\n")
        model = ModelSpec(engine_kwargs={"chat_template": str(file)})
        config = serve_config(ServiceSpec(model=model), CALLERS)
        file.unlink()
        read, _ = spec_from(yaml.safe_load(yaml.safe_dump(config))["applications"][0]["args"])
        assert read.models[0].engine_kwargs == {"chat_template": "{{ messages[0].content }}\n"}

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("chat_template", "templates/mine.jinja"),
            ("tool_parser_plugin", "plugins/parser.py"),
        ],
    )
    def test_a_file_of_this_machine(self, name: str, value: Any) -> None:
        spec = ServiceSpec(model=ModelSpec(engine_kwargs={name: value}))
        with pytest.raises(SpecError, match=rf"\['{name}'\].* is on this machine"):
            serve_config(spec, CALLERS)

    def test_a_file_in_the_image(self) -> None:
        kwargs = {
            "chat_template": "/opt/templates/mine.jinja",
        }
        model = ModelSpec(engine_kwargs=kwargs, adapters={"pirate": "/mnt/pirate"})
        serve_config(ServiceSpec(model=model), CALLERS)

    def test_both_sides_of_a_disaggregated_model_have_pods(self) -> None:
        split = Disaggregated(
            prefill=Side(scaling=ScalingSpec(max_replicas=3)), decode=Side(tensor_parallel_size=2)
        )
        model = ModelSpec(source="org/m-7B", accelerator="gpu", disaggregated=split)
        manifest = ray_service(ServiceSpec(model=model), "image", CALLERS)
        groups = manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"]
        assert [(group["groupName"], group["maxReplicas"]) for group in groups] == [
            ("m-7b", 1),
            ("m-7b-prefill", 3),
        ]
        long = model.model_copy(update={"id": "m" * 80})
        manifest = ray_service(ServiceSpec(model=long), "image", CALLERS)
        groups = manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"]
        assert len({group["groupName"] for group in groups}) == 2

    def test_an_adapter_of_this_machine(self) -> None:
        spec = ServiceSpec(model=ModelSpec(adapters={"pirate": "./pirate"}))
        with pytest.raises(SpecError, match=r"model\.adapters\['pirate'\] = .* is on this machine"):
            serve_config(spec, CALLERS)

    def test_a_key_instead_of_its_hash(self) -> None:
        with pytest.raises(SpecError) as caught:
            serve_config(ServiceSpec(), {"key_hashes": [KEY]})
        assert KEY not in str(caught.value)

    def test_a_parallel_size_that_does_not_divide_the_model(self) -> None:
        with pytest.raises(SpecError, match="4 attention heads"):
            serve_config(ServiceSpec(model=ModelSpec(tensor_parallel_size=3)), CALLERS)

    def test_a_serve_config_without_a_key(self) -> None:
        with pytest.raises(SpecError, match="LLM_WORKBENCH_API_KEY"):
            write("serve", ServiceSpec(), "", {})

    @pytest.mark.parametrize("text", ["- a\n", "a: [", "", "prot: 1\n"])
    def test_a_file_without_a_spec(self, tmp_path: Path, text: str) -> None:
        file = tmp_path / "spec.yaml"
        file.write_text(text)
        with pytest.raises(SpecError):
            read_spec(file)
        with pytest.raises(SpecError, match="cannot be read"):
            read_spec(tmp_path / "none.yaml")


class TestCommand:
    def test_it_writes_the_example(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["manifest", str(DEPLOY / "service-example.yaml"), "--kind", "kuberay"]) == 0
        assert capsys.readouterr().out == (DEPLOY / "rayservice-example.yaml").read_text()

    def test_the_key_of_the_environment_is_written_as_a_hash(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LLM_WORKBENCH_API_KEY", KEY)
        (tmp_path / "spec.yaml").write_text("name: mine\n")
        out = tmp_path / "config.yaml"
        command = ["manifest", str(tmp_path / "spec.yaml"), "--kind", "serve", "--out", str(out)]
        assert main(command) == 0
        assert KEY not in out.read_text()
        assert yaml.safe_load(out.read_text())["applications"][0]["args"]["key_hashes"] == [HASH]

    def test_an_invalid_spec_is_reported_in_one_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "spec.yaml").write_text("prot: 1\n")
        assert main(["manifest", str(tmp_path / "spec.yaml"), "--kind", "serve"]) != 0
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


class TestImage:
    """Its Dockerfile as text: no daemon builds the image here."""

    text = (DEPLOY / "Dockerfile").read_text()

    def instructions(self) -> list[tuple[str, str]]:
        joined = re.sub(r"\\\n", " ", self.text)
        lines = [line.strip() for line in joined.splitlines()]
        parts = [line.partition(" ") for line in lines if line and not line.startswith("#")]
        return [(name, rest.strip()) for name, _, rest in parts]

    def test_its_base_is_pinned_and_has_a_supported_python(self) -> None:
        assert self.instructions()[1] == ("FROM", "${BASE}")
        version = re.fullmatch(r"BASE=python:(3\.\d+)\.\d+-slim-\w+", self.instructions()[0][1])
        assert version is not None
        assert version[1] in {"3.11", "3.12", "3.13"}

    def test_it_does_not_run_as_root(self) -> None:
        names = [name for name, _ in self.instructions()]
        user = dict(self.instructions())["USER"]
        assert user == "1000"
        assert names.index("USER") > max(i for i, name in enumerate(names) if name == "RUN")

    def test_every_installation_uses_only_the_lock(self) -> None:
        installs = re.findall(r"pip install[^&\n]*", re.sub(r"\\\n", " ", self.text))
        commands = [install for install in installs if not install.startswith("#")]
        assert len(commands) == 2
        assert all("--no-deps" in command for command in commands)
        assert all("--require-hashes" in c for c in commands if "requirements" in c)
        assert 'scripts/torch_index.py "requirements/${ACCELERATOR}.txt"' in self.text
        assert '"--no-deps"' in (DEPLOY.parent / "scripts" / "torch_index.py").read_text()

    def test_what_it_copies_exists_and_is_sent_to_the_daemon(self) -> None:
        sent = (DEPLOY.parent / ".dockerignore").read_text().splitlines()
        for name, rest in self.instructions():
            if name == "COPY":
                for source in rest.split()[:-1]:
                    assert (DEPLOY.parent / source).exists()
                    assert f"!{source}" in sent

    def test_it_contains_no_secret(self) -> None:
        for name, rest in self.instructions():
            if name in ("ENV", "ARG"):
                assert re.search(r"(?i)token|secret|password|key", rest) is None

    def test_a_linter_accepts_it(self) -> None:
        if (hadolint := shutil.which("hadolint")) is None:
            pytest.skip("hadolint is not installed")
        subprocess.run([hadolint, str(DEPLOY / "Dockerfile")], check=True)


@cache
def kuberay_schema() -> Any:
    """A validator for KubeRay's schema; skips the test if the schema is not available."""
    from jsonschema import Draft202012Validator

    path = os.environ.get("KUBERAY_CRD")
    if path is None:
        pytest.skip("KUBERAY_CRD must name KubeRay's ray.io_rayservices.yaml")
    return Draft202012Validator(crd_schema(Path(path)))


def crd_schema(path: Path) -> dict[str, Any]:
    document = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    (stored,) = [v for v in document["spec"]["versions"] if v["storage"]]
    schema: dict[str, Any] = closed(stored["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def closed(schema: Any) -> Any:
    """The schema without unknown fields, which Kubernetes would drop silently.

    `int-or-string` is Kubernetes' own name for two types.
    """
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {name: closed(value) for name, value in schema.items()}
    if plain.get("x-kubernetes-int-or-string"):
        return {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    keeps_unknown = plain.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(plain.get("properties"), dict) and "type" in plain and not keeps_unknown:
        plain.setdefault("additionalProperties", False)
    return plain


def violations(document: dict[str, Any]) -> list[str]:
    errors = kuberay_schema().iter_errors(document)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tenants: 3", r"tenants must be a list of mappings, .*got 3"),
        ("tenants: [ada]", r"tenants must be a list of mappings, .*got \['ada'\]"),
        ("key_hashes: 12", "key_hashes must be a list of texts, got 12"),
        ("key_hashes: [12]", r"key_hashes must be a list of texts, got \[12\]"),
        ("model: tiny", "model must be a mapping or a list of its fields, .*got 'tiny'"),
        ("name: [3]", r"ServiceSpec.name must be a valid string, got \[3\]"),
    ],
)
def test_value_of_the_wrong_type_is_reported_as_such(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text(text)
    with pytest.raises(SpecError, match=message):
        read_spec(file)
