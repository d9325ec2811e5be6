"""Service specifications: validation, error messages, derived values and fingerprints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from serving.classroom.leases import Lease
from serving.errors import SpecError, WorkbenchError
from serving.spec.base import Strict
from serving.spec.guardrail import GuardAnswerFormat
from serving.spec.limits import Limits
from serving.spec.model import ModelSpec
from serving.spec.scaling import ScalingSpec, TTFTTarget
from serving.spec.service import ServiceSpec


def error_of(make: type[Strict], **fields: Any) -> str:
    """Return the message of the SpecError that these fields cause."""
    with pytest.raises(SpecError) as caught:
        make(**fields)
    assert isinstance(caught.value, WorkbenchError)
    return str(caught.value)


class TestUnknownKeys:
    @pytest.mark.parametrize(
        ("make", "fields", "path", "nearest"),
        [
            (ServiceSpec, {"prot": 9}, "ServiceSpec.prot is not a field, got 9", "'port'"),
            (ModelSpec, {"num_cpu": 2}, "ModelSpec.num_cpu is not a field, got 2", "'num_cpus'"),
            (
                ScalingSpec,
                {"min_replica": 3},
                "ScalingSpec.min_replica is not a field, got 3",
                "'min_replicas'",
            ),
        ],
    )
    def test_message_names_the_field_its_value_and_the_nearest_field(
        self, make: type[Strict], fields: dict[str, Any], path: str, nearest: str
    ) -> None:
        message = error_of(make, **fields)
        assert path in message
        assert f"did you mean {nearest}?" in message

    @pytest.mark.parametrize(
        ("fields", "path", "nearest"),
        [
            ({"model": {"sourc": "x"}}, "ModelSpec.sourc is not a field, got 'x'", "'source'"),
            (
                {"model": {"scaling": {"max_replica": 7}}},
                "ScalingSpec.max_replica is not a field, got 7",
                "'max_replicas'",
            ),
        ],
    )
    def test_nested_key_is_reported_with_its_own_class(
        self, fields: dict[str, Any], path: str, nearest: str
    ) -> None:
        message = error_of(ServiceSpec, **fields)
        assert path in message
        assert f"did you mean {nearest}?" in message

    def test_all_fields_are_listed_where_no_name_is_near(self) -> None:
        message = error_of(ServiceSpec, qqq=1)
        assert all(name in message for name in ("name", "model", "route_prefix", "host", "port"))

    def test_all_unknown_keys_are_named_together(self) -> None:
        message = error_of(ServiceSpec, prot=1, hots="x")
        assert "ServiceSpec.prot is not a field, got 1" in message
        assert "ServiceSpec.hots is not a field, got 'x'" in message

    def test_long_value_is_truncated(self) -> None:
        message = error_of(ServiceSpec, prot="x" * 5000)
        assert len(message) < 300
        assert "xxx..." in message

    @pytest.mark.parametrize("read", [ServiceSpec.model_validate, ServiceSpec.model_validate_json])
    def test_pydantics_own_constructors_raise_the_same_error(self, read: Any) -> None:
        given: Any = {"model": {"scaling": {"max_replica": 7}}}
        given = json.dumps(given) if read == ServiceSpec.model_validate_json else given
        with pytest.raises(SpecError, match=r"ScalingSpec\.max_replica is not a field, got 7"):
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
    def test_wrong_type_is_reported_with_class_field_and_value(
        self, make: type[Strict], field: str, value: Any
    ) -> None:
        message = error_of(make, **{field: value})
        assert message.startswith(f"{make.__name__}.{field} must be ")
        assert message.endswith(f", got {value!r}")

    @pytest.mark.parametrize(
        ("make", "field", "outside", "edge"),
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
    def test_bounds(self, make: type[Strict], field: str, outside: Any, edge: Any) -> None:
        message = error_of(make, **{field: outside})
        assert message.startswith(f"{make.__name__}.{field} must ")
        assert message.endswith(f", got {outside!r}")
        assert getattr(make(**{field: edge}), field) == edge

    @pytest.mark.parametrize("fraction", [1.5, 2, 0, -1])
    def test_worker_uses_at_most_one_gpu(self, fraction: float) -> None:
        assert "ModelSpec.num_gpus" in error_of(ModelSpec, accelerator="gpu", num_gpus=fraction)

    def test_request_limits_are_finite(self) -> None:
        for name in ("max_ongoing_requests", "max_queued_requests"):
            assert name in error_of(ScalingSpec, **{name: float("inf")})
            assert name in error_of(ScalingSpec, **{name: None})

    @pytest.mark.parametrize(
        "origin",
        [
            "app.example.org",
            "https://app.example.org/",
            "https://app.example.org/page",
            "https://App.example.org",
            "https://*.example.org",
            "ftp://app.example.org",
            "https://user@app.example.org",
            "https://app.example.org:port",
            "null",
            "",
            "https://a\r\nx-injected: 1",
        ],
    )
    def test_an_origin_is_as_browsers_send_it(self, origin: str) -> None:
        message = error_of(ServiceSpec, cors_origins=("https://app.example.org", origin))
        assert "cors_origins must have origins" in message

    def test_origins_need_no_new_replicas(self) -> None:
        origins = ("*", "https://app.example.org", "http://127.0.0.1:8888", "http://[::1]:3000")
        open_to_pages = ServiceSpec(cors_origins=origins)
        assert open_to_pages.engine_fingerprint() == ServiceSpec().engine_fingerprint()
        assert open_to_pages.ingress_fingerprint() == ServiceSpec().ingress_fingerprint()
        assert open_to_pages.fingerprint() != ServiceSpec().fingerprint()


class TestDependentFields:
    @pytest.mark.parametrize(
        ("fields", "parts"),
        [
            (
                {"min_replicas": 5, "max_replicas": 3},
                ("max_replicas must", "min_replicas = 5", "got 3"),
            ),
            (
                {"min_replicas": 2, "max_replicas": 4, "initial_replicas": 6},
                ("initial_replicas must", "= 2 and", "= 4", "got 6"),
            ),
            (
                {"min_replicas": 2, "max_replicas": 4, "initial_replicas": 1},
                ("initial_replicas must", "= 2 and", "= 4", "got 1"),
            ),
            (
                {"target_ongoing_requests": 9.5, "max_ongoing_requests": 7},
                ("target_ongoing_requests must", "max_ongoing_requests = 7", "got 9.5"),
            ),
        ],
    )
    def test_scaling_message_names_both_fields(
        self, fields: dict[str, Any], parts: tuple[str, ...]
    ) -> None:
        for message in (
            error_of(ScalingSpec, **fields),
            error_of(ServiceSpec, model={"scaling": fields}),
        ):
            assert all(part in message for part in parts)

    @pytest.mark.parametrize(
        ("fields", "parts"),
        [
            ({"num_gpus": 0.5}, ("num_gpus must", "accelerator = 'cpu'", "got 0.5")),
            (
                {"accelerator_type": "H100"},
                ("accelerator_type must", "accelerator = 'cpu'", "got 'H100'"),
            ),
            (
                {"accelerator": "gpu", "num_gpus": 0.25, "tensor_parallel_size": 2},
                ("num_gpus must", "2 parallel workers", "got 0.25"),
            ),
            (
                {"accelerator": "gpu", "num_gpus": 0.25, "pipeline_parallel_size": 3},
                ("num_gpus must", "3 parallel workers", "got 0.25"),
            ),
        ],
    )
    def test_resource_message_names_both_fields(
        self, fields: dict[str, Any], parts: tuple[str, ...]
    ) -> None:
        message = error_of(ModelSpec, **fields)
        assert all(part in message for part in parts)
        assert "kv_cache_gib" not in message, "the other fields do not matter here"

    def test_consistent_fields_are_accepted(self) -> None:
        ScalingSpec(min_replicas=2, max_replicas=2, initial_replicas=2)
        ScalingSpec(target_ongoing_requests=7, max_ongoing_requests=7)
        ModelSpec(accelerator="gpu", num_gpus=1, tensor_parallel_size=2)
        ModelSpec(accelerator="gpu", num_gpus=0.25)


@pytest.mark.parametrize("spec", [ServiceSpec(), ServiceSpec().model, ServiceSpec().model.scaling])
def test_spec_is_frozen_and_every_field_is_described(spec: Strict) -> None:
    for name, field in type(spec).model_fields.items():
        assert (field.description or "").endswith("."), name
        with pytest.raises(ValidationError, match="frozen"):
            setattr(spec, name, getattr(spec, name))


class TestDerivedValues:
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
    def test_model_id(self, fields: dict[str, Any], name: str) -> None:
        assert ModelSpec(**fields).model_id == name

    def test_workers_and_their_resources(self) -> None:
        grid = ModelSpec(tensor_parallel_size=2, pipeline_parallel_size=3, num_cpus=4)
        assert grid.workers == 6
        assert grid.worker_resources == {"CPU": 4.0}
        assert ModelSpec(accelerator="gpu").worker_resources == {"CPU": 1.0, "GPU": 1.0}
        assert ModelSpec(accelerator="gpu", num_gpus=0.5).worker_resources == {
            "CPU": 1.0,
            "GPU": 0.5,
        }

    @pytest.mark.parametrize(("min_replicas", "composed"), [(0, True), (1, False), (2, False)])
    def test_scaling_to_zero_needs_the_composed_path(
        self, min_replicas: int, composed: bool
    ) -> None:
        scaling = ScalingSpec(min_replicas=min_replicas, max_replicas=2)
        assert ServiceSpec(model=ModelSpec(scaling=scaling)).composed is composed


def with_model(**model: Any) -> ServiceSpec:
    return ServiceSpec(model=ModelSpec(**model))


def with_scaling(**scaling: Any) -> ServiceSpec:
    return with_model(scaling=ScalingSpec(**scaling))


class TestParallelism:
    def test_worker_resources_name_the_accelerator_type(self) -> None:
        model = ModelSpec(accelerator="gpu", accelerator_type="H100", num_cpus=2)
        assert model.worker_resources == {"CPU": 2, "GPU": 1.0, "accelerator_type:H100": 0.001}
        assert ModelSpec(accelerator="gpu").worker_resources == {"CPU": 1, "GPU": 1.0}

    def test_cpu_workers_share_a_node(self) -> None:
        assert ModelSpec().placement_strategy == "STRICT_PACK"
        assert ModelSpec(accelerator="gpu").placement_strategy == "PACK"
        with pytest.raises(
            SpecError, match=r"placement must be STRICT_PACK for the 2 workers.*got 'SPREAD'"
        ):
            ModelSpec(tensor_parallel_size=2, placement="SPREAD")

    @pytest.mark.parametrize(
        "given", [{"data_parallel_size": 2}, {"expert_parallel": True, "tensor_parallel_size": 2}]
    )
    def test_cpu_build_cannot_share_experts(self, given: dict[str, Any]) -> None:
        with pytest.raises(
            SpecError, match=f"{next(iter(given))} must be left out.*vLLM's CPU build"
        ):
            ModelSpec(**given)

    def test_data_parallel_group_takes_no_placement(self) -> None:
        with pytest.raises(SpecError, match="data_parallel_size = 2"):
            ModelSpec(accelerator="gpu", data_parallel_size=2, placement="SPREAD")


class TestNames:
    @pytest.mark.parametrize(
        ("fields", "model_id", "aliases"),
        [
            ({"source": "org/model-7B"}, "model-7B", ("org/model-7B",)),
            ({"source": "org/model-7B", "id": "mine"}, "mine", ("org/model-7B", "model-7B")),
            ({"source": "org/model-7B", "id": "org/model-7B"}, "org/model-7B", ("model-7B",)),
            ({"source": "gpt2"}, "gpt2", ()),
            ({"source": "gpt2", "id": "mine"}, "mine", ("gpt2",)),
            ({"source": "tiny"}, "tiny-llama-glossary", ()),
            ({"source": "nano", "id": "mine"}, "mine", ()),
            ({"source": "/srv/models/model-7B"}, "model-7B", ()),
            ({"source": "./model-7B", "id": "mine"}, "mine", ()),
            ({"source": "~/model-7B"}, "model-7B", ()),
            ({"source": "s3://bucket/model-7B"}, "model-7B", ()),
        ],
    )
    def test_a_model_of_the_hub_also_answers_to_its_hub_id_and_short_name(
        self, fields: dict[str, Any], model_id: str, aliases: tuple[str, ...]
    ) -> None:
        model = ModelSpec(**fields)
        assert (model.model_id, model.aliases) == (model_id, aliases)

    def test_a_folder_that_exists_has_no_alias(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "org" / "model").mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        assert ModelSpec(source="org/model").aliases == ()

    @pytest.mark.parametrize(
        ("adapters", "problem"),
        [
            ({"mine": "x"}, "adapters must not have the name 'mine'"),
            ({"org/model": "x"}, "adapters must not have the name 'org/model'"),
            ({"a b": "x"}, "ModelSpec.adapters must have names of letters"),
            ({"a": "x", "b": ""}, "for every name"),
            ({str(number): "x" for number in range(33)}, "ModelSpec.adapters must have at most 32"),
        ],
    )
    def test_invalid_adapters(self, adapters: dict[str, str], problem: str) -> None:
        message = error_of(ModelSpec, source="org/model", id="mine", adapters=adapters)
        assert problem in message
        assert len(message.splitlines()) == 1

    def test_as_many_adapters_as_allowed(self) -> None:
        assert len(ModelSpec(adapters={str(number): "x" for number in range(32)}).adapters) == 32

    def test_adapters_need_new_replicas(self) -> None:
        plain, adapted = with_model(), with_model(adapters={"pirate": "org/pirate"})
        assert plain.engine_fingerprint() != adapted.engine_fingerprint()


class TestChatTemplate:
    TEXT = "{% for m in messages %}{{ m.content }}{% endfor %}"

    def test_the_text_of_a_file_is_part_of_the_spec(self, tmp_path: Path) -> None:
        file = tmp_path / "template.jinja"
        file.write_text(self.TEXT)
        by_path, by_text = (
            with_model(engine_kwargs={"chat_template": t}) for t in (str(file), self.TEXT)
        )
        assert by_path == by_text
        assert by_path.engine_fingerprint() == by_text.engine_fingerprint()
        file.write_text(self.TEXT + "!")
        changed = with_model(engine_kwargs={"chat_template": str(file)})
        assert changed.engine_fingerprint() != by_path.engine_fingerprint()
        assert ServiceSpec(**by_path.model_dump()) == by_path

    def test_a_path_that_does_not_exist_is_kept(self) -> None:
        kwargs = {"chat_template": "/mnt/templates/mine.jinja"}
        assert ModelSpec(engine_kwargs=kwargs).engine_kwargs == kwargs

    @pytest.mark.parametrize(
        ("content", "problem"),
        [(b"\xff\xfe{", "it is not UTF-8"), (b"no braces", "must contain a Jinja template")],
    )
    def test_a_file_that_is_no_template(self, tmp_path: Path, content: bytes, problem: str) -> None:
        file = tmp_path / "template.jinja"
        file.write_bytes(content)
        message = error_of(ModelSpec, engine_kwargs={"chat_template": str(file)})
        assert problem in message
        assert f"chat_template = {str(file)!r}" in message

    def test_a_folder_is_no_template(self, tmp_path: Path) -> None:
        message = error_of(ModelSpec, engine_kwargs={"chat_template": str(tmp_path)})
        assert "cannot be read: Is a directory" in message


class TestFingerprints:
    @pytest.mark.parametrize(
        "same",
        [
            ServiceSpec(name="llm", port=8000),
            ServiceSpec(**ServiceSpec().model_dump()),
            ServiceSpec.model_validate_json(ServiceSpec().model_dump_json()),
            ServiceSpec(model={"scaling": {}}),
            ServiceSpec(model=ModelSpec(scaling=ScalingSpec())),
            with_model(num_cpus=1.0, kv_cache_gib=1.0),
            with_model(num_cpus=1, kv_cache_gib=1),
            with_scaling(target_ongoing_requests=8.0, upscale_delay_s=10.0),
            with_scaling(target_ongoing_requests=8, upscale_delay_s=10),
        ],
    )
    def test_equal_specs_have_equal_fingerprints(self, same: ServiceSpec) -> None:
        assert same == ServiceSpec()
        assert same.fingerprint() == ServiceSpec().fingerprint()
        assert same.engine_fingerprint() == ServiceSpec().engine_fingerprint()

    def test_order_of_keys_does_not_matter(self) -> None:
        first = with_model(engine_kwargs={"seed": 1, "max_num_seqs": 4}, env={"A": "1", "B": "2"})
        second = with_model(env={"B": "2", "A": "1"}, engine_kwargs={"max_num_seqs": 4, "seed": 1})
        assert first.fingerprint() == second.fingerprint()
        assert first.engine_fingerprint() == second.engine_fingerprint()

    @pytest.mark.parametrize(
        "other",
        [
            with_scaling(max_replicas=2),
            with_scaling(min_replicas=2, max_replicas=2),
            with_scaling(max_ongoing_requests=32),
            with_scaling(max_queued_requests=0),
            with_scaling(retry_after_s=3),
            with_scaling(upscale_delay_s=1),
            with_scaling(downscale_delay_s=1),
            with_scaling(target_ongoing_requests=4),
            ServiceSpec(start_timeout_s=60),
            ServiceSpec(route_prefix="/llm"),
        ],
    )
    def test_scaling_and_endpoint_fields_keep_the_replicas(self, other: ServiceSpec) -> None:
        assert other.fingerprint() != ServiceSpec().fingerprint()
        assert other.engine_fingerprint() == ServiceSpec().engine_fingerprint()

    @pytest.mark.parametrize(
        "other",
        [
            with_model(source="org/other"),
            with_model(id="other"),
            with_model(num_cpus=2),
            with_model(memory_gib=1),
            with_model(accelerator="gpu"),
            with_model(dtype="float32"),
            with_model(max_model_len=256),
            with_model(tensor_parallel_size=2),
            with_model(pipeline_parallel_size=2),
            with_model(kv_cache_gib=2),
            with_model(engine_kwargs={"seed": 1}),
            with_model(env={"A": "1"}),
            with_scaling(min_replicas=0),
        ],
    )
    def test_engine_fields_need_new_replicas(self, other: ServiceSpec) -> None:
        assert other.fingerprint() != ServiceSpec().fingerprint()
        assert other.engine_fingerprint() != ServiceSpec().engine_fingerprint()

    def test_min_replicas_changes_the_engine_fingerprint_only_at_zero(self) -> None:
        counts = [
            with_scaling(min_replicas=n, max_replicas=4).engine_fingerprint() for n in range(4)
        ]
        assert counts[0] != counts[1] == counts[2] == counts[3]

    def test_fingerprint_is_the_same_in_another_process(self) -> None:
        code = "from serving.spec.service import ServiceSpec; print(ServiceSpec().fingerprint())"
        process = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert process.stdout.strip() == ServiceSpec().fingerprint()


@pytest.mark.parametrize("name", ["HF_TOKEN", "MY_SECRET", "db_password", "OPENAI_API_KEY"])
def test_engine_environment_refuses_secrets(name: str) -> None:
    with pytest.raises(SpecError, match=name) as caught:
        ModelSpec(env={name: "hush-hush"})
    assert "hush-hush" not in str(caught.value)
    assert ModelSpec(env={"TOKENIZERS_PARALLELISM": "false"}).env


def test_package_hands_on_every_public_specification() -> None:
    import serving.spec

    for name in serving.spec.__all__:
        home = getattr(serving.spec, name).__module__
        assert home.startswith("serving.spec."), name


def test_importing_the_specifications_loads_no_heavy_package() -> None:
    code = (
        "import sys, serving.spec; "
        "print([m for m in ('ray', 'torch', 'transformers', 'vllm', 'pandas', 'numpy', 'httpx') "
        "if m in sys.modules])"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert process.stdout.strip() == "[]"


class TestMessages:
    @pytest.mark.parametrize(
        ("make", "fields", "message"),
        [
            (
                ScalingSpec,
                {"max_replicas": 0},
                "max_replicas must be greater than or equal to 1, got 0",
            ),
            (ScalingSpec, {"max_replicas": 2.5}, "max_replicas must be a valid integer, got 2.5"),
            (ModelSpec, {"accelerator": "tpu"}, "accelerator must be 'cpu' or 'gpu', got 'tpu'"),
            (
                ScalingSpec,
                {"policy": {"kind": "cpu"}},
                "policy.kind must be one of 'requests', 'engine_pressure', 'ttft_target', got "
                "'cpu'",
            ),
            (
                GuardAnswerFormat,
                {"safe": "("},
                "safe must be a regular expression (missing ), unterminated subpattern at position "
                "0), got '('",
            ),
            (TTFTTarget, {}, "ttft_ms is required; give it a value"),
        ],
    )
    def test_message_states_the_requirement_and_the_value(
        self, make: type[Strict], fields: dict[str, Any], message: str
    ) -> None:
        assert error_of(make, **fields) == f"{make.__name__}.{message}"

    def test_fix_follows_the_value(self) -> None:
        lease = {"tenant": {"name": "ada"}, "ends_at": "2031-01-01T00:00:00Z"}
        assert error_of(Lease, **lease) == (
            "Lease.tenant must have a key_hash, got {'name': 'ada'}; key_hash(key) returns it"
        )


@pytest.mark.parametrize("interval_ms", [-1, 10_001, float("nan")])
def test_the_interval_between_packets_is_bounded(interval_ms: float) -> None:
    with pytest.raises(SpecError, match="stream_batching_interval_ms must be"):
        ModelSpec(stream_batching_interval_ms=interval_ms)


def test_a_changed_interval_needs_new_replicas() -> None:
    changed = ServiceSpec(model=ModelSpec(stream_batching_interval_ms=100))
    assert changed.engine_fingerprint() != ServiceSpec().engine_fingerprint()
