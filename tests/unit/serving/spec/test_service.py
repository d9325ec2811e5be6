"""The specification: what it refuses and how it says so; what changes its fingerprints."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from serving.errors import SpecError, WorkbenchError
from serving.spec.base import Strict
from serving.spec.limits import Limits
from serving.spec.model import ModelSpec
from serving.spec.scaling import ScalingSpec
from serving.spec.service import ServiceSpec


def refusal(make: type[Strict], **fields: Any) -> str:
    with pytest.raises(SpecError) as caught:
        make(**fields)
    assert isinstance(caught.value, WorkbenchError)
    return str(caught.value)


class TestUnknownKeys:
    @pytest.mark.parametrize(
        ("make", "fields", "path", "nearest"),
        [
            (ServiceSpec, {"prot": 9}, "ServiceSpec.prot = 9", "'port'"),
            (ModelSpec, {"num_cpu": 2}, "ModelSpec.num_cpu = 2", "'num_cpus'"),
            (ScalingSpec, {"min_replica": 3}, "ScalingSpec.min_replica = 3", "'min_replicas'"),
        ],
    )
    def test_the_message_names_class_field_value_and_the_nearest_field(
        self, make: type[Strict], fields: dict[str, Any], path: str, nearest: str
    ) -> None:
        said = refusal(make, **fields)
        assert path in said
        assert f"Did you mean {nearest}?" in said

    @pytest.mark.parametrize(
        ("fields", "path", "nearest"),
        [
            ({"model": {"sourc": "x"}}, "ModelSpec.sourc = 'x'", "'source'"),
            (
                {"model": {"scaling": {"max_replica": 7}}},
                "ScalingSpec.max_replica = 7",
                "'max_replicas'",
            ),
        ],
    )
    def test_nested_keys_name_the_class_they_were_meant_for(
        self, fields: dict[str, Any], path: str, nearest: str
    ) -> None:
        said = refusal(ServiceSpec, **fields)
        assert path in said
        assert f"Did you mean {nearest}?" in said

    def test_without_a_near_name_all_fields_are_listed(self) -> None:
        said = refusal(ServiceSpec, qqq=1)
        assert all(name in said for name in ("name", "model", "route_prefix", "host", "port"))

    def test_every_unknown_key_is_named_at_once(self) -> None:
        said = refusal(ServiceSpec, prot=1, hots="x")
        assert "ServiceSpec.prot = 1" in said
        assert "ServiceSpec.hots = 'x'" in said

    def test_a_long_value_is_cut_off(self) -> None:
        said = refusal(ServiceSpec, prot="x" * 5000)
        assert len(said) < 300
        assert "xxx..." in said

    @pytest.mark.parametrize("read", [ServiceSpec.model_validate, ServiceSpec.model_validate_json])
    def test_pydantics_own_ways_in_raise_the_same_error(self, read: Any) -> None:
        given: Any = {"model": {"scaling": {"max_replica": 7}}}
        given = json.dumps(given) if read == ServiceSpec.model_validate_json else given
        with pytest.raises(SpecError, match=r"ScalingSpec\.max_replica = 7"):
            read(given)


class TestValues:
    @pytest.mark.parametrize(
        ("make", "field", "value"),
        [
            (ScalingSpec, "max_replicas", "two"),
            (ScalingSpec, "max_replicas", 2.5),
            (ScalingSpec, "max_replicas", None),
            (ScalingSpec, "target_ongoing_requests", float("nan")),
            (ModelSpec, "num_cpus", "many"),
            (ModelSpec, "num_cpus", float("inf")),
            (ScalingSpec, "upscale_delay_s", float("inf")),
            (ModelSpec, "accelerator", "tpu"),
            (ModelSpec, "engine_kwargs", "--enforce-eager"),
            (ServiceSpec, "model", "tiny"),
            (ServiceSpec, "model", None),
            (ServiceSpec, "port", "http"),
        ],
    )
    def test_a_wrong_type_names_class_field_and_value(
        self, make: type[Strict], field: str, value: Any
    ) -> None:
        assert f"{make.__name__}.{field} = {value!r}: " in refusal(make, **{field: value})

    @pytest.mark.parametrize(
        ("make", "field", "out", "edge"),
        [
            (ScalingSpec, "min_replicas", -1, 0),
            (ScalingSpec, "max_replicas", 0, 1),
            (ScalingSpec, "target_ongoing_requests", 0, 0.001),
            (ScalingSpec, "max_queued_requests", -1, 0),
            (ScalingSpec, "max_queued_requests", 8193, 8192),
            (ScalingSpec, "max_ongoing_requests", 4097, 4096),
            (ScalingSpec, "upscale_delay_s", -0.1, 0),
            (ScalingSpec, "retry_after_s", 0, 1),
            (ModelSpec, "num_cpus", 0, 0.5),
            (ModelSpec, "tensor_parallel_size", 0, 1),
            (ModelSpec, "max_model_len", 15, 16),
            (ModelSpec, "source", "", "x"),
            (ModelSpec, "id", "two words", "org/two-words:1.5"),
            (ServiceSpec, "port", -1, 0),
            (ServiceSpec, "port", 65536, 65535),
            (Limits, "max_body_mib", 0, 1),
            (Limits, "max_body_mib", 64.5, 64),
            (ServiceSpec, "name", "Upper", "lower-1"),
            (ServiceSpec, "name", "x" * 64, "x" * 63),
            (ServiceSpec, "route_prefix", "/end/", "/a/b-c_d"),
            (ServiceSpec, "route_prefix", "relative", "/"),
            (ServiceSpec, "start_timeout_s", 0, 1),
        ],
    )
    def test_a_bound_is_where_it_is_said_to_be(
        self, make: type[Strict], field: str, out: Any, edge: Any
    ) -> None:
        assert f"{make.__name__}.{field} = {out!r}" in refusal(make, **{field: out})
        assert getattr(make(**{field: edge}), field) == edge

    @pytest.mark.parametrize("fraction", [1.5, 2, 0, -1])
    def test_a_worker_takes_one_gpu_or_a_fraction(self, fraction: float) -> None:
        assert "ModelSpec.num_gpus" in refusal(ModelSpec, accelerator="gpu", num_gpus=fraction)

    def test_limits_are_always_finite(self) -> None:
        for name in ("max_ongoing_requests", "max_queued_requests"):
            assert name in refusal(ScalingSpec, **{name: float("inf")})
            assert name in refusal(ScalingSpec, **{name: None})


class TestFieldsThatMustAgree:
    @pytest.mark.parametrize(
        ("fields", "named"),
        [
            (
                {"min_replicas": 5, "max_replicas": 3},
                ("max_replicas = 3", "min_replicas = 5"),
            ),
            (
                {"min_replicas": 2, "max_replicas": 4, "initial_replicas": 6},
                ("initial_replicas = 6", "2..4"),
            ),
            (
                {"min_replicas": 2, "max_replicas": 4, "initial_replicas": 1},
                ("initial_replicas = 1", "2..4"),
            ),
            (
                {"target_ongoing_requests": 9.5, "max_ongoing_requests": 7},
                ("target_ongoing_requests = 9.5", "max_ongoing_requests = 7"),
            ),
        ],
    )
    def test_scaling_names_both_numbers(
        self, fields: dict[str, Any], named: tuple[str, str]
    ) -> None:
        for said in (
            refusal(ScalingSpec, **fields),
            refusal(ServiceSpec, model={"scaling": fields}),
        ):
            assert all(part in said for part in named)

    @pytest.mark.parametrize(
        ("fields", "named"),
        [
            ({"num_gpus": 0.5}, ("num_gpus = 0.5", "accelerator = 'cpu'")),
            ({"accelerator_type": "H100"}, ("accelerator_type = 'H100'", "accelerator = 'cpu'")),
            (
                {"accelerator": "gpu", "num_gpus": 0.25, "tensor_parallel_size": 2},
                ("num_gpus = 0.25", "2 parallel workers"),
            ),
            (
                {"accelerator": "gpu", "num_gpus": 0.25, "pipeline_parallel_size": 3},
                ("num_gpus = 0.25", "3 parallel workers"),
            ),
        ],
    )
    def test_resources_name_both_fields(
        self, fields: dict[str, Any], named: tuple[str, str]
    ) -> None:
        said = refusal(ModelSpec, **fields)
        assert all(part in said for part in named)
        assert "kv_cache_gib" not in said, "the whole of the fields drowns the two that matter"

    def test_what_agrees_is_taken(self) -> None:
        ScalingSpec(min_replicas=2, max_replicas=2, initial_replicas=2)
        ScalingSpec(target_ongoing_requests=7, max_ongoing_requests=7)
        ModelSpec(accelerator="gpu", num_gpus=1, tensor_parallel_size=2)
        ModelSpec(accelerator="gpu", num_gpus=0.25)


@pytest.mark.parametrize("spec", [ServiceSpec(), ServiceSpec().model, ServiceSpec().model.scaling])
def test_a_spec_is_frozen_and_every_field_described(spec: Strict) -> None:
    for name, field in type(spec).model_fields.items():
        assert (field.description or "").endswith("."), name
        with pytest.raises(ValidationError, match="frozen"):
            setattr(spec, name, getattr(spec, name))


class TestDerived:
    @pytest.mark.parametrize(
        ("fields", "name"),
        [
            ({}, "tiny-llama-glossary"),
            ({"id": "mine"}, "mine"),
            ({"source": "org/Model-1.5B"}, "Model-1.5B"),
            ({"source": "/models/local/"}, "local"),
            ({"source": "./relative"}, "relative"),
            ({"source": "org/Model-1.5B", "id": "org/other"}, "org/other"),
        ],
    )
    def test_the_models_id(self, fields: dict[str, Any], name: str) -> None:
        assert ModelSpec(**fields).model_id == name

    def test_workers_and_their_bundle(self) -> None:
        grid = ModelSpec(tensor_parallel_size=2, pipeline_parallel_size=3, num_cpus=4)
        assert grid.workers == 6
        assert grid.bundle == {"CPU": 4.0}
        assert ModelSpec(accelerator="gpu").bundle == {"CPU": 1.0, "GPU": 1.0}
        assert ModelSpec(accelerator="gpu", num_gpus=0.5).bundle == {"CPU": 1.0, "GPU": 0.5}

    @pytest.mark.parametrize(("fewest", "composed"), [(0, True), (1, False), (2, False)])
    def test_a_model_that_may_sleep_needs_the_composed_path(
        self, fewest: int, composed: bool
    ) -> None:
        scaling = ScalingSpec(min_replicas=fewest, max_replicas=2)
        assert ServiceSpec(model=ModelSpec(scaling=scaling)).composed is composed


def of(**model: Any) -> ServiceSpec:
    return ServiceSpec(model=ModelSpec(**model))


def scaled(**scaling: Any) -> ServiceSpec:
    return of(scaling=ScalingSpec(**scaling))


class TestParallel:
    def test_a_bundle_asks_for_the_type_of_its_gpu(self) -> None:
        model = ModelSpec(accelerator="gpu", accelerator_type="H100", num_cpus=2)
        assert model.bundle == {"CPU": 2, "GPU": 1.0, "accelerator_type:H100": 0.001}
        assert ModelSpec(accelerator="gpu").bundle == {"CPU": 1, "GPU": 1.0}

    def test_cpu_workers_are_processes_of_one_node(self) -> None:
        assert ModelSpec().strategy == "STRICT_PACK"
        assert ModelSpec(accelerator="gpu").strategy == "PACK"
        with pytest.raises(SpecError, match=r"placement = 'SPREAD': the 2 workers"):
            ModelSpec(tensor_parallel_size=2, placement="SPREAD")

    @pytest.mark.parametrize(
        "given", [{"data_parallel_size": 2}, {"expert_parallel": True, "tensor_parallel_size": 2}]
    )
    def test_a_cpu_build_shares_no_experts(self, given: dict[str, Any]) -> None:
        with pytest.raises(SpecError, match=f"{next(iter(given))} = .*vLLM's CPU build"):
            ModelSpec(**given)

    def test_a_group_is_placed_by_serve(self) -> None:
        with pytest.raises(SpecError, match="data_parallel_size = 2"):
            ModelSpec(accelerator="gpu", data_parallel_size=2, placement="SPREAD")


class TestFingerprints:
    @pytest.mark.parametrize(
        "same",
        [
            ServiceSpec(name="llm", port=8000),
            ServiceSpec(**ServiceSpec().model_dump()),
            ServiceSpec.model_validate_json(ServiceSpec().model_dump_json()),
            ServiceSpec(model={"scaling": {}}),
            ServiceSpec(model=ModelSpec(scaling=ScalingSpec())),
            of(num_cpus=1.0, kv_cache_gib=1.0),
            of(num_cpus=1, kv_cache_gib=1),
            scaled(target_ongoing_requests=8.0, upscale_delay_s=10.0),
            scaled(target_ongoing_requests=8, upscale_delay_s=10),
        ],
    )
    def test_equal_specs_have_equal_ones(self, same: ServiceSpec) -> None:
        assert same == ServiceSpec()
        assert same.fingerprint() == ServiceSpec().fingerprint()
        assert same.engine_fingerprint() == ServiceSpec().engine_fingerprint()

    def test_the_order_of_keys_is_nothing(self) -> None:
        one = of(engine_kwargs={"seed": 1, "max_num_seqs": 4}, env={"A": "1", "B": "2"})
        other = of(env={"B": "2", "A": "1"}, engine_kwargs={"max_num_seqs": 4, "seed": 1})
        assert one.fingerprint() == other.fingerprint()
        assert one.engine_fingerprint() == other.engine_fingerprint()

    @pytest.mark.parametrize(
        "other",
        [
            scaled(max_replicas=2),
            scaled(min_replicas=2, max_replicas=2),
            scaled(max_ongoing_requests=32),
            scaled(max_queued_requests=0),
            scaled(retry_after_s=3),
            scaled(upscale_delay_s=1),
            scaled(downscale_delay_s=1),
            scaled(target_ongoing_requests=4),
            ServiceSpec(start_timeout_s=60),
            ServiceSpec(route_prefix="/llm"),
        ],
    )
    def test_scaling_and_limits_keep_the_replicas(self, other: ServiceSpec) -> None:
        assert other.fingerprint() != ServiceSpec().fingerprint()
        assert other.engine_fingerprint() == ServiceSpec().engine_fingerprint()

    @pytest.mark.parametrize(
        "other",
        [
            of(source="org/other"),
            of(id="other"),
            of(num_cpus=2),
            of(memory_gib=1),
            of(accelerator="gpu"),
            of(dtype="float32"),
            of(max_model_len=256),
            of(tensor_parallel_size=2),
            of(pipeline_parallel_size=2),
            of(kv_cache_gib=2),
            of(engine_kwargs={"seed": 1}),
            of(env={"A": "1"}),
            scaled(min_replicas=0),
        ],
    )
    def test_what_a_running_replica_cannot_change_needs_new_ones(self, other: ServiceSpec) -> None:
        assert other.fingerprint() != ServiceSpec().fingerprint()
        assert other.engine_fingerprint() != ServiceSpec().engine_fingerprint()

    def test_the_least_number_of_replicas_counts_only_at_zero(self) -> None:
        counts = [scaled(min_replicas=n, max_replicas=4).engine_fingerprint() for n in range(4)]
        assert counts[0] != counts[1] == counts[2] == counts[3]

    def test_they_are_the_same_in_another_process(self) -> None:
        ask = "from serving.spec.service import ServiceSpec; print(ServiceSpec().fingerprint())"
        told = subprocess.run(
            [sys.executable, "-c", ask], capture_output=True, text=True, check=True
        )
        assert told.stdout.strip() == ServiceSpec().fingerprint()


@pytest.mark.parametrize("name", ["HF_TOKEN", "MY_SECRET", "db_password", "OPENAI_API_KEY"])
def test_the_engines_environment_takes_no_secret(name: str) -> None:
    with pytest.raises(SpecError, match=name) as caught:
        ModelSpec(env={name: "hush-hush"})
    assert "hush-hush" not in str(caught.value)
    assert ModelSpec(env={"TOKENIZERS_PARALLELISM": "false"}).env
