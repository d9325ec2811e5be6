"""The Serve application as Ray holds it, built in a separate process and returned as JSON.

Ray Serve reads its flags when it is imported, so that process sets them; no cluster is started.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from serving.compat.variables import SERVE_FLAGS
from serving.deploy.app import build
from serving.deploy.deployments import autoscaling_config, user_config
from serving.engine.engine_args import engine_kwargs
from serving.errors import ModelNotFoundError, SpecError
from serving.gateway.config import GateConfig
from serving.spec.limits import Limits
from serving.spec.model import ModelSpec, deployment_name
from serving.spec.pipeline import PipelineSpec
from serving.spec.scaling import ScalingSpec
from serving.spec.service import ServiceSpec
from serving.spec.tenants import Tenant

KEY = "sk-the-key-that-must-not-travel"
HASH = hashlib.sha256(KEY.encode()).hexdigest()
TENANT = Tenant(name="one", key_hash=HASH)
STORE = "VLLM_ENABLE_RESPONSES_API_STORE"

DESCRIBE = """
import json, sys
from ray import cloudpickle
from serving.deploy.app import build

def describe(app, routed=False):
    deployment = app._bound_deployment
    config, replica = deployment._deployment_config, deployment._replica_config
    scaling = config.autoscaling_config
    # The router's own argument is the application it routes to.
    router = None if routed else app._ingress_request_router
    models = {} if routed else deployment.init_kwargs.get("models", {})
    prefill = {} if routed else deployment.init_kwargs
    inner = [*models.values(), *(prefill[k] for k in ("prefill_server",) if k in prefill)]
    return {
        "name": deployment.name,
        "target": deployment.func_or_class,
        "version": deployment.version,
        "max_ongoing_requests": config.max_ongoing_requests,
        "max_queued_requests": config.max_queued_requests,
        "max_constructor_retry_count": config.max_constructor_retry_count,
        "user_config": config.user_config,
        "autoscaling": scaling and scaling.model_dump(mode="json"),
        "num_replicas": config.num_replicas,
        "request_router": config.request_router_config.request_router_class,
        "actor_options": replica.ray_actor_options,
        "bundles": replica.placement_group_bundles,
        "strategy": replica.placement_group_strategy,
        "init_args": deployment.init_args,
        "ingress_router": router and describe(router, True),
        "inner": [describe(app) for app in inner],
        "pickled": "" if routed else cloudpickle.dumps(app).hex(),
    }

cases = json.load(sys.stdin)
answer = {"apps": {name: describe(build(args)) for name, args in cases.items()}}
answer["heavy"] = sorted({"vllm", "torch"} & set(sys.modules))
import ray
answer["started"] = ray.is_initialized()
print(json.dumps(answer))
"""

SCALES_TO_ZERO = {
    "min_replicas": 0,
    "max_replicas": 3,
    "max_ongoing_requests": 5,
    "target_ongoing_requests": 2,
    "max_queued_requests": 7,
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"model": {"scaling": {"max_replicas": 4, "max_ongoing_requests": 9}}},
    "other": {"model": {"max_model_len": 256}},
    "large": {
        "name": "large",
        "limits": {"max_body_mib": 0.5},
        "model": {
            "id": "org/large-1.5",
            "accelerator": "gpu",
            "tensor_parallel_size": 2,
            "num_cpus": 3,
            "memory_gib": 2,
            "env": {"MINE": "x"},
        },
    },
    "sleeps": {"model": {"scaling": SCALES_TO_ZERO}},
    "split": {
        "name": "split",
        "model": {
            "disaggregated": {
                "prefill": {"num_cpus": 2, "scaling": {"max_replicas": 3}},
                "decode": {"scaling": {"max_replicas": 2, "max_ongoing_requests": 9}},
                "connector": "example",
                "connector_options": {"shared_storage_path": "/mnt/kv"},
            }
        },
    },
}


@pytest.fixture(scope="module")
def answer() -> dict[str, Any]:
    cases = {name: {"key_hashes": [HASH], **args} for name, args in CASES.items()}
    # On the command line of `serve run` every value is text.
    text = json.dumps({"scaling": CASES["scaled"]["model"]["scaling"]})
    cases["text"] = {"key_hashes": f"{HASH},{HASH[::-1]}", "port": "8000", "model": text}
    ran = subprocess.run(
        [sys.executable, "-c", DESCRIBE],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        env=os.environ | SERVE_FLAGS | {"LLM_WORKBENCH_API_KEY": KEY, "HF_TOKEN": "hf_" + KEY},
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    result: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return result


@pytest.fixture(scope="module")
def apps(answer: dict[str, Any]) -> dict[str, Any]:
    applications: dict[str, Any] = answer["apps"]
    return applications


def every_deployment(app: dict[str, Any]) -> list[dict[str, Any]]:
    below = [*app["inner"], *filter(None, [app["ingress_router"]])]
    return [app, *(deployment for part in below for deployment in every_deployment(part))]


class TestDisaggregated:
    def test_a_decode_replica_is_behind_the_gate_and_has_a_handle_to_prefill(
        self, answer: dict[str, Any]
    ) -> None:
        decode = answer["apps"]["split"]
        (prefill,) = decode["inner"]
        assert decode["target"].endswith(".DecodeReplica")
        assert prefill["target"].endswith(".PrefillReplica")
        assert (decode["name"], prefill["name"]) == (
            "tiny-llama-glossary",
            "tiny-llama-glossary-prefill",
        )
        assert decode["user_config"]["access"]["max_ongoing_requests"] == 9
        assert prefill["user_config"] is None
        assert decode["ingress_router"] is not None

    def test_each_side_has_its_own_scaling_and_resources(self, answer: dict[str, Any]) -> None:
        decode = answer["apps"]["split"]
        (prefill,) = decode["inner"]
        assert decode["autoscaling"]["max_replicas"] == 2
        assert prefill["autoscaling"]["max_replicas"] == 3
        assert (decode["bundles"], prefill["bundles"]) == ([{"CPU": 1}], [{"CPU": 2}])
        assert decode["version"] != prefill["version"]


class TestRefusals:
    @pytest.mark.parametrize("missing", [{}, {"key_hashes": None}, {"key_hashes": []}])
    def test_an_application_without_a_key_is_not_built(self, missing: dict[str, Any]) -> None:
        with pytest.raises(SpecError, match="key_hashes is missing"):
            build(missing)

    @pytest.mark.parametrize("given", [[KEY], KEY, [HASH, KEY], HASH[:-1], HASH.upper(), ","])
    def test_a_key_instead_of_its_hash_is_rejected_and_not_repeated(self, given: Any) -> None:
        with pytest.raises(SpecError, match="key_hash") as caught:
            build({"key_hashes": given})
        assert KEY not in str(caught.value)

    @pytest.mark.parametrize(
        ("args", "part"),
        [
            ({"prot": 1}, "ServiceSpec.prot is not a field, got 1"),
            ({"model": {"engine_kwargs": {"max_num_seq": 1}}}, "max_num_seqs"),
            ({"model": '{"num_cpu": 2}'}, "num_cpu is not a field, got 2"),
            ({"model": "{bad"}, "of its fields, or JSON, got '{bad'"),
            ({"model": "tiny"}, "of its fields, or JSON, got 'tiny'"),
        ],
    )
    def test_an_invalid_spec_is_rejected(self, args: dict[str, Any], part: str) -> None:
        with pytest.raises(SpecError, match=re.escape(part)):
            build({"key_hashes": [HASH], **args})

    def test_a_missing_model_is_rejected(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFoundError):
            build({"key_hashes": [HASH], "model": {"source": str(tmp_path)}})


class TestEveryApplication:
    def test_building_one_imports_no_engine_and_starts_no_cluster(
        self, answer: dict[str, Any]
    ) -> None:
        assert answer["heavy"] == []
        assert answer["started"] is False

    def test_every_deployment_has_limits(self, apps: dict[str, Any]) -> None:
        for app in apps.values():
            for deployment in every_deployment(app):
                assert 1 <= deployment["max_ongoing_requests"] <= 20_000, deployment["name"]
        for app in apps.values():
            assert 0 <= app["max_queued_requests"] <= 20_000

    def test_only_the_hash_of_a_key_travels(self, apps: dict[str, Any]) -> None:
        for app in apps.values():
            pickled = bytes.fromhex(app["pickled"])
            shown = json.dumps({k: v for k, v in app.items() if k != "pickled"})
            assert KEY.encode() not in pickled
            assert KEY not in shown
            assert HASH.encode() in pickled
            assert app["user_config"]["access"]["tenants"][0]["key_hash"] == HASH

    def test_a_model_that_cannot_start_is_retried_once(self, apps: dict[str, Any]) -> None:
        for app in apps.values():
            models = [d for d in every_deployment(app) if d["bundles"]]
            assert {d["max_constructor_retry_count"] for d in models} == {1}

    @pytest.mark.parametrize("name", CASES)
    def test_the_version_covers_what_a_replica_cannot_change(
        self, apps: dict[str, Any], name: str
    ) -> None:
        spec = ServiceSpec(**CASES[name])
        models = [d for d in every_deployment(apps[name]) if d["bundles"]]
        assert [d["version"] for d in models] == [
            spec.engine_fingerprint(model) for model in spec.engines
        ]
        assert apps[name]["version"] == spec.engine_fingerprint()
        assert apps[name]["user_config"]["fingerprint"] == spec.fingerprint()

    def test_scaling_keeps_the_version_and_an_engine_argument_changes_it(
        self, apps: dict[str, Any]
    ) -> None:
        assert apps["scaled"]["version"] == apps["plain"]["version"] != apps["other"]["version"]
        assert apps["scaled"]["init_args"] == apps["plain"]["init_args"]

    def test_text_from_a_command_line_is_the_same_application(self, apps: dict[str, Any]) -> None:
        text, plain = (
            {k: v for k, v in apps[n].items() if k not in ("pickled", "user_config")}
            for n in ("text", "scaled")
        )
        assert text == plain
        access = apps["text"]["user_config"]["access"]
        assert [t["key_hash"] for t in access.pop("tenants")] == [HASH, HASH[::-1]]
        assert access.items() <= apps["scaled"]["user_config"]["access"].items()


class TestDirectPath:
    def test_replicas_are_named_by_path(self, apps: dict[str, Any]) -> None:
        # So that only replicas import vLLM.
        assert apps["plain"]["target"] == "serving.engine.entry.DirectReplica"
        assert apps["plain"]["ingress_router"]["target"].startswith("ray.llm.")

    def test_the_gate_has_the_limits_of_the_spec_and_serve_allows_more(
        self, apps: dict[str, Any]
    ) -> None:
        access = apps["plain"]["user_config"]["access"]
        assert access | {"tenants": None} == {
            "tenants": None,
            "models": [
                {
                    "id": "tiny-llama-glossary",
                    "aliases": [],
                    "adapters": [],
                    "max_model_len": None,
                }
            ],
            "auto": False,
            "sessions": False,
            "stores_responses": False,
            "cors_origins": [],
            "limits": Limits().model_dump(),
            "max_ongoing_requests": 64,
            "max_queued_requests": 128,
            "retry_after_s": 1,
        }
        assert apps["plain"]["max_ongoing_requests"] > 64 + 128
        assert apps["scaled"]["user_config"]["access"]["max_ongoing_requests"] == 9
        assert apps["large"]["user_config"]["access"]["limits"]["max_body_mib"] == 0.5

    def test_resources(self, apps: dict[str, Any]) -> None:
        large = apps["large"]
        assert large["bundles"][0].pop("memory") == 2 * 2**30
        assert large["bundles"] == [{"CPU": 3.0, "GPU": 1.0}] * 2
        assert large["strategy"] == "PACK"
        assert large["actor_options"]["runtime_env"]["env_vars"]["MINE"] == "x"
        assert apps["plain"]["bundles"] == [{"CPU": 1.0}]

    def test_only_replicas_on_a_gpu_run_their_code_on_the_loop_of_http(
        self, apps: dict[str, Any]
    ) -> None:
        name = "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD"
        environments = {
            key: apps[key]["actor_options"]["runtime_env"]["env_vars"] for key in ("large", "plain")
        }
        assert environments["large"][name] == "0"
        assert name not in environments["plain"]

    def test_scaling_is_passed_to_serve_by_its_own_names(self, apps: dict[str, Any]) -> None:
        scaling = apps["scaled"]["autoscaling"]
        assert scaling["max_replicas"] == 4
        assert (scaling["initial_replicas"], scaling["min_replicas"]) == (None, 1)
        assert scaling["target_ongoing_requests"] == 8
        assert (scaling["upscale_delay_s"], scaling["downscale_delay_s"]) == (10, 60)


class TestComposedPath:
    def test_a_model_that_scales_to_zero_is_behind_our_ingress(self, apps: dict[str, Any]) -> None:
        app = apps["sleeps"]
        assert app["target"] == "serving.pipeline.ingress.Ingress"
        assert app["num_replicas"] == 1
        assert app["autoscaling"] is None
        assert app["ingress_router"] is None
        (model,) = app["inner"]
        assert model["target"] == "serving.engine.entry.EngineReplica"
        assert model["autoscaling"]["min_replicas"] == 0
        assert model["autoscaling"]["initial_replicas"] is None
        assert model["autoscaling"]["max_replicas"] == 3
        assert model["max_ongoing_requests"] == 5

    def test_the_ingress_admits_what_all_replicas_can_serve(self, apps: dict[str, Any]) -> None:
        access = apps["sleeps"]["user_config"]["access"]
        assert access["max_ongoing_requests"] == 3 * 5 + 7
        assert access["max_queued_requests"] == 0

    def test_the_ingress_takes_no_resources(self, apps: dict[str, Any]) -> None:
        assert apps["sleeps"]["bundles"] is None
        assert apps["sleeps"]["actor_options"]["num_cpus"] == 0


class TestParts:
    def test_user_config_is_json_from_which_the_gate_is_configured(self) -> None:
        ends = datetime(2031, 5, 6, tzinfo=UTC)
        tenant = Tenant(name="one", key_hash=HASH, models=("a",), expires_at=ends)
        config = json.loads(json.dumps(user_config(ServiceSpec(), (tenant,))))
        assert GateConfig(**config["access"]).authenticate(KEY) == tenant
        assert GateConfig(**config["access"]).authenticate(HASH) is None

    def test_the_gate_knows_every_name_of_a_model(self) -> None:
        model = {"source": "org/Model-7B", "max_model_len": 4096}
        spec = ServiceSpec(model=model, cors_origins=["https://app.example.org"])
        access = user_config(spec, (TENANT,))["access"]
        names = {"id": "Model-7B", "aliases": ["org/Model-7B"], "adapters": []}
        assert access["models"] == [names | {"max_model_len": 4096}]
        assert access["cors_origins"] == ["https://app.example.org"]
        pipeline = PipelineSpec(models=[{"id": "a"}, {"id": "b"}], router={})
        access = user_config(pipeline, (TENANT,))["access"]
        assert [model["id"] for model in access["models"]] == ["a", "b"]
        assert access["auto"]

    @pytest.mark.parametrize(
        ("scaling", "env", "tenants", "stores"),
        [
            ({"max_replicas": 1}, {STORE: "1"}, 1, True),
            ({"max_replicas": 1}, {STORE: "0"}, 1, False),
            ({"max_replicas": 1}, {}, 1, False),
            ({"max_replicas": 2}, {STORE: "1"}, 1, False),
            ({"max_replicas": 1}, {STORE: "1"}, 2, False),
            ({"max_replicas": 1, "min_replicas": 0}, {STORE: "1"}, 1, False),
        ],
    )
    def test_responses_are_stored_where_one_replica_and_tenant_find_them(
        self, scaling: dict[str, int], env: dict[str, str], tenants: int, stores: bool
    ) -> None:
        spec = ServiceSpec(model={"scaling": scaling, "env": env})
        several = tuple(
            Tenant(name=f"t{number}", key_hash=f"{number}" * 64) for number in range(tenants)
        )
        assert user_config(spec, several)["access"]["stores_responses"] is stores

    @pytest.mark.parametrize(
        ("model_id", "name"), [("a", "a"), ("org/Model-1.5", "org--Model-1_5")]
    )
    def test_a_deployments_name_has_no_separator_of_serve(self, model_id: str, name: str) -> None:
        assert deployment_name(ModelSpec(id=model_id)) == name

    def test_autoscaling_omits_absent_fields_and_those_of_the_gate(self) -> None:
        config = autoscaling_config(ScalingSpec(min_replicas=2, max_replicas=3))
        assert "downscale_to_zero_delay_s" not in config
        assert not {"max_ongoing_requests", "max_queued_requests", "retry_after_s"} & set(config)
        assert "initial_replicas" not in config
        started = autoscaling_config(ScalingSpec(max_replicas=3, initial_replicas=3))
        assert started["initial_replicas"] == 3

    def test_bounds_count_the_replicas_of_a_data_parallel_group(self) -> None:
        scaling = ScalingSpec(min_replicas=1, max_replicas=3, initial_replicas=2)
        config = autoscaling_config(scaling, 4)
        counts = {name: config[name] for name in config if name.endswith("_replicas")}
        assert counts == {"min_replicas": 4, "max_replicas": 12, "initial_replicas": 8}


def test_a_data_parallel_group_is_scheduled_as_one_gang() -> None:
    from serving.deploy.deployments import DIRECT_GROUP, model_deployment

    model = ModelSpec(accelerator="gpu", data_parallel_size=2, expert_parallel=True)
    deployment = model_deployment(DIRECT_GROUP, ServiceSpec(model=model), model)
    assert deployment._deployment_config.gang_scheduling_config.gang_size == 2
    kwargs = engine_kwargs(model)
    assert (kwargs["data_parallel_size"], kwargs["enable_expert_parallel"]) == (2, True)
