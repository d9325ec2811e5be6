"""Everything that is rejected before anything starts."""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.installed import folder

from serving.compat import vllm
from serving.compat.vllm import engine_arguments, frontend_arguments
from serving.deploy import preflight
from serving.deploy.engine_kwargs import OWN_FIELDS, REJECTED
from serving.deploy.preflight import (
    check_model,
    check_resources,
    check_running_serve,
    fits_beside,
    fits_in_memory,
    reads_prompts,
)
from serving.engine.engine_args import engine_kwargs
from serving.errors import (
    ClusterError,
    MissingPackageError,
    ModelNotFoundError,
    ResourcesError,
    SpecError,
)
from serving.models.embedded import tiny_model_path
from serving.spec.model import ModelSpec
from serving.spec.scaling import ScalingSpec
from serving.spec.service import EndpointSpec, ServiceSpec

GIB = 2**30
LAPTOP = {"CPU": 8.0, "memory": 16.0 * GIB, "object_store_memory": 4.0 * GIB}
GPU_NODE = {"CPU": 32.0, "GPU": 2.0, "memory": 64.0 * GIB, "accelerator_type:H100": 1.0}
OTHER_GPU_NODE = {"CPU": 16.0, "GPU": 1.0, "memory": 32.0 * GIB, "accelerator_type:L4": 1.0}
CLUSTER: list[Mapping[str, Any]] = [LAPTOP, GPU_NODE, OTHER_GPU_NODE]


def service(**model: Any) -> ServiceSpec:
    return ServiceSpec(model=ModelSpec(**model))


class TestEngineArguments:
    def test_without_vllm_the_message_has_the_command_that_installs_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(vllm, "find_spec", lambda name: None)
        engine_arguments.cache_clear()
        try:
            with pytest.raises(MissingPackageError, match=r"'vllm' is not installed.*make setup"):
                check_model(ModelSpec(engine_kwargs={"seed": 1}))
        finally:
            engine_arguments.cache_clear()

    @pytest.mark.parametrize(
        ("name", "nearest"),
        [
            ("max_num_seq", "max_num_seqs"),
            ("gpu_memory_utilisation", "gpu_memory_utilization"),
            ("enable_prefix_cachin", "enable_prefix_caching"),
        ],
    )
    def test_an_unknown_argument_is_rejected_with_the_nearest_name(
        self, name: str, nearest: str
    ) -> None:
        with pytest.raises(SpecError) as caught:
            check_model(ModelSpec(engine_kwargs={"seed": 1, name: 17}))
        message = str(caught.value)
        assert f"model.engine_kwargs[{name!r}] = 17" in message
        assert f"Did you mean {nearest!r}?" in message

    def test_an_unknown_argument_that_resembles_none_is_rejected(self) -> None:
        with pytest.raises(SpecError, match="vLLM has no such argument"):
            check_model(ModelSpec(engine_kwargs={"qqqq": 1}))

    @pytest.mark.parametrize(
        ("name", "field"),
        [
            ("model", "model.source"),
            ("served_model_name", "model.id"),
            ("dtype", "model.dtype"),
            ("max_model_len", "model.max_model_len"),
            ("tensor_parallel_size", "model.tensor_parallel_size"),
            ("pipeline_parallel_size", "model.pipeline_parallel_size"),
            ("api_key", "api_key of deploy()"),
            ("port", "port"),
            ("root_path", "route_prefix"),
            ("lora_modules", "model.adapters"),
            ("allowed_origins", "cors_origins"),
        ],
    )
    def test_an_argument_that_a_field_sets_is_rejected_with_that_field(
        self, name: str, field: str
    ) -> None:
        with pytest.raises(SpecError, match=rf"engine_kwargs\['{name}'\]") as caught:
            check_model(ModelSpec(engine_kwargs={name: "x"}))
        assert f"set {field} instead" in str(caught.value)

    def test_every_field_in_a_message_exists(self) -> None:
        elsewhere = {"api_key of deploy()", "the environment variable HF_TOKEN", "cors_origins"}
        for field in set(OWN_FIELDS.values()) - elsewhere:
            spec = ModelSpec if field.startswith("model.") else EndpointSpec
            assert field.removeprefix("model.") in spec.model_fields

    def test_known_arguments_reach_vllm(self) -> None:
        given: dict[str, Any] = {"max_num_seqs": 4, "seed": 7, "enforce_eager": False}
        model = ModelSpec(engine_kwargs=given)
        check_model(model)
        assert engine_kwargs(model).items() >= given.items()
        assert model.engine_kwargs == given

    @pytest.mark.parametrize("name", ["api_key", "hf_token"])
    def test_a_secret_is_not_repeated(self, name: str) -> None:
        with pytest.raises(SpecError) as caught:
            check_model(ModelSpec(engine_kwargs={name: "sk-of-somebody"}))
        assert "sk-of-somebody" not in str(caught.value)


class TestFrontEndArguments:
    def test_they_are_known_like_engine_arguments(self) -> None:
        given: dict[str, Any] = {
            "enable_auto_tool_choice": True,
            "tool_call_parser": "hermes",
            "reasoning_parser": "deepseek_r1",
            "chat_template": "{{ messages[0].content }}",
            "default_chat_template_kwargs": {"enable_thinking": False},
            "chat_template_content_format": "openai",
            "sse_keep_alive_interval": 15,
            "response_role": "bot",
            "return_tokens_as_token_ids": True,
            "enable_prompt_tokens_details": True,
            "fingerprint_mode": "none",
        }
        model = ModelSpec(engine_kwargs=given)
        check_model(model)
        assert engine_kwargs(model).items() >= given.items()

    @pytest.mark.parametrize(
        ("name", "nearest"),
        [
            ("enable_auto_tool_choise", "enable_auto_tool_choice"),
            ("tool_parser", "tool_call_parser"),
            ("chat_templat", "chat_template"),
            ("response_rol", "response_role"),
        ],
    )
    def test_the_nearest_name_is_from_both_lists(self, name: str, nearest: str) -> None:
        with pytest.raises(SpecError, match=rf"\['{name}'\] = 1: .*Did you mean '{nearest}'"):
            check_model(ModelSpec(engine_kwargs={name: 1}))

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("uds", "Ray Serve runs the HTTP server"),
            ("ssl_keyfile", "Ray Serve runs the HTTP server"),
            ("middleware", "before the gate's checks"),
            ("enable_log_requests", "texts of requests or answers to the log"),
            ("enable_log_outputs", "texts of requests or answers to the log"),
            ("enable_log_deltas", "texts of requests or answers to the log"),
            ("uvicorn_log_level", "the log of a replica"),
            ("trust_request_chat_template", "replace the template of the model"),
            ("tool_server", "would call other servers"),
            ("data_parallel_supervisor_port", "places the replicas"),
            ("enable_tokenizer_info_endpoint", "does not forward"),
        ],
    )
    def test_what_serve_or_the_gate_owns_is_rejected_with_the_reason(
        self, name: str, reason: str
    ) -> None:
        with pytest.raises(SpecError) as caught:
            check_model(ModelSpec(engine_kwargs={name: True}))
        assert f"engine_kwargs[{name!r}] = True is not accepted" in str(caught.value)
        assert reason in str(caught.value)

    def test_every_rejected_name_is_an_argument_of_vllm(self) -> None:
        known = engine_arguments() | frontend_arguments().keys()
        assert REJECTED.keys() <= known
        assert OWN_FIELDS.keys() <= known
        assert not REJECTED.keys() & OWN_FIELDS.keys()

    @pytest.mark.parametrize(
        ("name", "value", "allowed"),
        [
            ("enable_auto_tool_choice", "yes", "must be bool"),
            ("enable_force_include_usage", 1, "must be bool"),
            ("response_role", 5, "must be str"),
            ("sse_keep_alive_interval", True, "must be int"),
            ("sse_keep_alive_interval", -1, "must be at least 0"),
            ("default_chat_template_kwargs", "x", "must be dict[str, Any] or None"),
            ("chat_template", 5, "must be str or None"),
            ("chat_template_content_format", "json", "must be Literal['auto', 'string', 'openai']"),
            ("fingerprint_mode", "short", "must be Literal["),
            ("reasoning_parser", 3, "must be the name of a parser"),
        ],
    )
    def test_a_value_of_another_type(self, name: str, value: Any, allowed: str) -> None:
        with pytest.raises(SpecError) as caught:
            check_model(ModelSpec(engine_kwargs={name: value}))
        assert f"engine_kwargs[{name!r}] = {value!r} {allowed}" in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "value", "fix"),
        [
            ("tool_call_parser", "herms", "Did you mean 'hermes'?"),
            ("tool_call_parser", "zzzzzz", "Choose one of"),
            ("reasoning_parser", "deepseek_r2", "Did you mean 'deepseek_r1'?"),
        ],
    )
    def test_a_parser_that_does_not_exist(self, name: str, value: str, fix: str) -> None:
        with pytest.raises(SpecError) as caught:
            check_model(ModelSpec(engine_kwargs={name: value}))
        assert f"engine_kwargs[{name!r}] = {value!r}: vLLM has no such parser" in str(caught.value)
        assert fix in str(caught.value)

    def test_a_plugin_may_define_any_parser(self, tmp_path: Path) -> None:
        plugin = tmp_path / "parser.py"
        kwargs = {"tool_call_parser": "mine", "tool_parser_plugin": str(plugin)}
        with pytest.raises(SpecError, match=r"\['tool_parser_plugin'\] = .* does not exist"):
            check_model(ModelSpec(engine_kwargs=kwargs))
        plugin.touch()
        check_model(ModelSpec(engine_kwargs=kwargs))

    def test_automatic_tool_choice_needs_a_parser(self) -> None:
        with pytest.raises(
            SpecError, match=r"\['enable_auto_tool_choice'\].*tool_call_parser.*herm"
        ):
            check_model(ModelSpec(engine_kwargs={"enable_auto_tool_choice": True}))

    @pytest.mark.parametrize(
        "template",
        [
            "{% for m in messages %}\n{{ m.content ",
            "{% if x %}",
            "{{ messages | no_such_filter }}",
            "{% elif %}",
        ],
    )
    def test_a_template_that_does_not_parse(self, template: str, tmp_path: Path) -> None:
        file = tmp_path / "template.jinja"
        file.write_text(template)
        for given in (template, str(file)):
            with pytest.raises(
                SpecError, match=r"\['chat_template'\] = .*line \d+ .* not valid Jinja"
            ):
                check_model(ModelSpec(engine_kwargs={"chat_template": given}))

    def test_a_template_may_use_what_transformers_provides(self) -> None:
        template = (
            "{% for m in messages %}{% if loop.index > 9 %}{% break %}{% endif %}"
            "{% generation %}{{ m | tojson }}{% endgeneration %}{% endfor %}"
            "{{ strftime_now('%d') }}"
        )
        check_model(ModelSpec(engine_kwargs={"chat_template": template}))

    def test_a_template_that_does_not_exist(self, tmp_path: Path) -> None:
        missing = str(tmp_path / "template.jinja")
        with pytest.raises(SpecError, match=r"\['chat_template'\] = .* does not exist"):
            check_model(ModelSpec(engine_kwargs={"chat_template": missing}))

    def test_a_template_of_vllms_own_is_found_by_name(self) -> None:
        check_model(ModelSpec(engine_kwargs={"chat_template": "template_chatml.jinja"}))


class TestStructuredOutputs:
    @pytest.mark.parametrize(
        ("config", "problem"),
        [
            ("auto", "must be a mapping, such as {'backend': 'auto'}"),
            ({"backend": "xgramar"}, "backend is one of xgrammar, guidance"),
            (
                {"backend": "auto", "disable_any_whitespace": True},
                "disable_any_whitespace needs the backend xgrammar or guidance",
            ),
        ],
    )
    def test_an_invalid_configuration(self, config: Any, problem: str) -> None:
        with pytest.raises(SpecError) as caught:
            check_model(ModelSpec(engine_kwargs={"structured_outputs_config": config}))
        assert f"['structured_outputs_config'] = {config!r}" in str(caught.value)
        assert problem in str(caught.value)

    @pytest.mark.parametrize(
        ("given", "passed"),
        [
            (None, {"backend": "xgrammar", "disable_any_whitespace": True}),
            ({"backend": "auto"}, {"backend": "auto"}),
            (
                {"disable_any_whitespace": False},
                {"backend": "xgrammar", "disable_any_whitespace": False},
            ),
            (
                {"enable_in_reasoning": True},
                {
                    "backend": "xgrammar",
                    "disable_any_whitespace": True,
                    "enable_in_reasoning": True,
                },
            ),
        ],
    )
    def test_it_overrides_the_default(
        self, given: dict[str, Any] | None, passed: dict[str, Any]
    ) -> None:
        kwargs = {} if given is None else {"structured_outputs_config": given}
        model = ModelSpec(engine_kwargs=kwargs)
        check_model(model)
        assert engine_kwargs(model)["structured_outputs_config"] == passed


ROUTES = ("entrypoints", "renderers", "parser", "tool_parsers", "reasoning", "multimodal")
"""The parts of vLLM that answer requests."""
NOT_FOR_CLIENTS = ("cli", "launchers", "grpc_server.py", "llm.py", "run_batch.py", "dev")
OTHER_FLAGS = {
    "enable_log_requests",  # a warning in the log
    "help",  # of the command line
    "logits_processor_pattern",  # about a field of a request that the gate rejects
    "trust_request_chat_template",  # likewise
}


class TestFlagsInErrors:
    """What vLLM's errors tell a client to set must be possible."""

    def flags(self) -> set[str]:
        """The options in the texts of the modules that answer requests."""
        package = folder("vllm")
        found = set()
        for path in (path for name in ROUTES for path in (package / name).rglob("*.py")):
            if set(path.relative_to(package).parts) & set(NOT_FOR_CLIENTS):
                continue
            tree = ast.parse(path.read_text(encoding="utf-8"))
            documentation = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and node not in documentation:
                    found |= set(re.findall(r"(?<![\w-])--([a-z][a-z-]+)", str(node.value)))
        return {name.replace("-", "_") for name in found}

    def test_they_are_accepted(self) -> None:
        flags = self.flags() - OTHER_FLAGS
        assert {"enable_auto_tool_choice", "tool_call_parser"} <= flags
        assert flags <= engine_arguments() | frontend_arguments().keys()
        assert not flags & (REJECTED.keys() | OWN_FIELDS.keys())


class TestDisaggregated:
    def spec(self, connector: str = "nixl", **sides: Any) -> ServiceSpec:
        options = {"shared_storage_path": "/mnt/kv"} if connector == "example" else {}
        split = {"connector": connector, "connector_options": options, **sides}
        return ServiceSpec(model=ModelSpec(disaggregated=split, accelerator="gpu", source="org/m"))

    @pytest.mark.parametrize("connector", ["nixl", "lmcache"])
    def test_a_connector_that_is_not_installed(
        self, connector: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(preflight, "find_spec", lambda name: None)
        with pytest.raises(MissingPackageError) as caught:
            preflight.check_connector(self.spec(connector))
        assert f"connector = {connector!r} needs the package {connector!r}" in str(caught.value)
        monkeypatch.setattr(preflight, "find_spec", lambda name: name)
        preflight.check_connector(self.spec(connector))

    def test_other_services_need_no_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(preflight, "find_spec", lambda name: None)
        preflight.check_connector(self.spec("example"))
        preflight.check_connector(ServiceSpec())

    def test_more_cards_than_the_cluster_has(self) -> None:
        two = {"scaling": {"min_replicas": 2, "max_replicas": 2}}
        check_resources(self.spec("example", decode=two), CLUSTER)
        with pytest.raises(ResourcesError) as caught:
            check_resources(self.spec("example", decode=two, prefill=two), CLUSTER)
        assert "needs 4 GPUs, 2 for prefill and 2 for decode, but the cluster has 3" in (
            str(caught.value)
        )


class TestModelPath:
    def test_a_path_that_does_not_exist(self, tmp_path: Path) -> None:
        missing = str(tmp_path / "nowhere")
        with pytest.raises(ModelNotFoundError) as caught:
            check_model(ModelSpec(source=missing))
        assert f"model.source = {missing!r} does not exist" in str(caught.value)
        assert "Hugging Face" in str(caught.value)

    def test_a_folder_without_a_model(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFoundError, match=r"has no config\.json"):
            check_model(ModelSpec(source=str(tmp_path)))

    @pytest.mark.parametrize("source", ["./nowhere", "../nowhere", "~/nowhere-at-all", "/nowhere"])
    def test_what_looks_like_a_path_is_a_path(self, source: str) -> None:
        with pytest.raises(ModelNotFoundError, match="does not exist"):
            check_model(ModelSpec(source=source))

    def test_a_relative_folder_that_exists_is_a_path(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "org" / "empty").mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ModelNotFoundError, match=r"has no config\.json"):
            check_model(ModelSpec(source="org/empty"))

    def test_a_model_a_hub_id_and_the_embedded_model_pass(self, tmp_path: Path) -> None:
        shutil.copytree(tiny_model_path(), tmp_path / "mine")
        for source in (str(tmp_path / "mine"), str(tiny_model_path()), "tiny", "org/model-7B"):
            check_model(ModelSpec(source=source))


class TestRoomForTwo:
    @pytest.mark.parametrize(
        ("model", "free", "fits"),
        [
            ({}, [{"CPU": 1.0}], True),
            ({}, [{"CPU": 0.9}, {"CPU": 0.9}], False),
            ({"memory_gib": 2}, [{"CPU": 4.0, "memory": 1.0 * GIB}], False),
            ({"memory_gib": 2}, [{"CPU": 4.0}, {"CPU": 4.0, "memory": 2.0 * GIB}], True),
            ({"tensor_parallel_size": 2}, [{"CPU": 1.0}, {"CPU": 1.0}], False),
            ({"tensor_parallel_size": 2}, [{"CPU": 2.0}], True),
            ({"accelerator": "gpu"}, [{"CPU": 8.0}], False),
            ({"accelerator": "gpu", "num_gpus": 0.5}, [{"CPU": 8.0, "GPU": 0.5}], True),
            (
                {"accelerator": "gpu", "pipeline_parallel_size": 2},
                [{"CPU": 1.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 1.0}],
                True,
            ),
            (
                {"accelerator": "gpu", "data_parallel_size": 2},
                [{"CPU": 8.0, "GPU": 1.0}],
                False,
            ),
        ],
    )
    def test_one_more_replica_needs_free_resources(
        self, model: dict[str, Any], free: list[dict[str, float]], fits: bool
    ) -> None:
        assert fits_beside([ModelSpec(**model)], free) is fits

    def test_all_models_need_room_at_once(self) -> None:
        models = [ModelSpec(id="a"), ModelSpec(id="b")]
        assert not fits_beside(models, [{"CPU": 1.0}])
        free = [{"CPU": 2.0}]
        assert fits_beside(models, free)
        assert free == [{"CPU": 2.0}]

    def test_a_cpu_replica_needs_memory_for_its_processes_weights_and_cache(self) -> None:
        model = ModelSpec(kv_cache_gib=2)
        assert fits_in_memory([model], 5.6)
        assert not fits_in_memory([model], 5.4)
        assert not fits_in_memory([model, model], 8)
        assert fits_in_memory([ModelSpec(memory_gib=1)], 1)
        assert fits_in_memory([ModelSpec(accelerator="gpu")], 0)


class TestResources:
    @pytest.mark.parametrize(
        ("model", "nodes", "parts"),
        [
            (
                {"tensor_parallel_size": 2, "num_cpus": 6},
                [{"CPU": 8.0}, {"CPU": 8.0}],
                ["2 engine worker(s)", "'STRICT_PACK'", "the largest takes 1"],
            ),
            (
                {"accelerator": "gpu", "tensor_parallel_size": 4, "placement": "STRICT_PACK"},
                [GPU_NODE, GPU_NODE],
                ["4 engine worker(s)", "'STRICT_PACK'", "the largest takes 2"],
            ),
            (
                {"accelerator": "gpu", "tensor_parallel_size": 2, "placement": "STRICT_SPREAD"},
                [LAPTOP, GPU_NODE],
                ["2 engine worker(s)", "'STRICT_SPREAD'", "1 node(s) take one"],
            ),
            (
                {"accelerator": "gpu", "data_parallel_size": 3},
                [GPU_NODE],
                ["3 engine worker(s)", "2 GPUs"],
            ),
        ],
    )
    def test_an_impossible_placement_is_rejected(
        self, model: dict[str, Any], nodes: list[Mapping[str, Any]], parts: list[str]
    ) -> None:
        with pytest.raises(ResourcesError) as caught:
            check_resources(service(**model), nodes)
        for part in parts:
            assert part in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("model", "nodes"),
        [
            ({"accelerator": "gpu", "tensor_parallel_size": 4}, [GPU_NODE, GPU_NODE]),
            (
                {"accelerator": "gpu", "tensor_parallel_size": 2, "placement": "STRICT_SPREAD"},
                [OTHER_GPU_NODE, GPU_NODE],
            ),
            ({"accelerator": "gpu", "data_parallel_size": 3}, [GPU_NODE, GPU_NODE]),
        ],
    )
    def test_a_possible_placement_passes(
        self, model: dict[str, Any], nodes: list[Mapping[str, Any]]
    ) -> None:
        check_resources(service(**model), nodes)

    @pytest.mark.parametrize(
        "model",
        [
            {},
            {"num_cpus": 32},
            {"num_cpus": 0.1},
            {"tensor_parallel_size": 2, "num_cpus": 16},
            {"memory_gib": 64},
            {"accelerator": "gpu"},
            {"accelerator": "gpu", "num_gpus": 0.5},
            {"accelerator": "gpu", "num_gpus": 0.1},
            {"accelerator": "gpu", "accelerator_type": "L4"},
            {"accelerator": "gpu", "tensor_parallel_size": 2, "accelerator_type": "H100"},
            {"accelerator": "gpu", "pipeline_parallel_size": 3},
        ],
    )
    def test_a_replica_that_fits_passes(self, model: dict[str, Any]) -> None:
        check_resources(service(**model), CLUSTER)

    @pytest.mark.parametrize(
        ("model", "nodes", "parts"),
        [
            (
                {"accelerator": "gpu"},
                [LAPTOP],
                ["model.num_gpus = 1", "0 GPUs", "1 node(s)"],
            ),
            (
                {"accelerator": "gpu", "tensor_parallel_size": 4},
                CLUSTER,
                ["model.num_gpus = 1", "4 engine worker(s)", "3 GPUs", "3 node(s)"],
            ),
            (
                {"accelerator": "gpu", "tensor_parallel_size": 2, "pipeline_parallel_size": 2},
                CLUSTER,
                ["4 engine worker(s)", "3 GPUs"],
            ),
            (
                {"accelerator": "gpu", "num_gpus": 0.5},
                [LAPTOP, {"CPU": 4.0, "GPU": 0.25}],
                ["model.num_gpus = 0.5", "0.25 GPUs", "2 node(s)"],
            ),
            (
                {"num_cpus": 33},
                CLUSTER,
                ["model.num_cpus = 33", "56 CPUs", "3 node(s)"],
            ),
            (
                {"num_cpus": 20, "tensor_parallel_size": 2},
                CLUSTER,
                ["model.num_cpus = 20", "2 engine worker(s)", "56 CPUs"],
            ),
            (
                {"accelerator": "gpu", "accelerator_type": "A100"},
                CLUSTER,
                ["model.accelerator_type = 'A100'", "H100, L4"],
            ),
            (
                {"accelerator": "gpu", "accelerator_type": "A100"},
                [{"CPU": 8.0, "GPU": 1.0}],
                ["model.accelerator_type = 'A100'", "has none"],
            ),
            (
                {"memory_gib": 65},
                CLUSTER,
                ["model.memory_gib = 65", "64.0 GiB"],
            ),
            ({}, [], ["model.num_cpus = 1", "0 CPUs", "0 node(s)"]),
            ({"memory_gib": 1}, [{"CPU": 1.0}], ["model.memory_gib = 1", "0.0 GiB"]),
        ],
    )
    def test_a_replica_that_never_fits_is_rejected_with_field_value_and_what_there_is(
        self, model: dict[str, Any], nodes: list[Mapping[str, Any]], parts: list[str]
    ) -> None:
        with pytest.raises(ResourcesError) as caught:
            check_resources(service(**model), nodes)
        for part in parts:
            assert part in str(caught.value)

    def test_a_single_worker_is_never_spread_over_nodes(self) -> None:
        halves: list[Mapping[str, Any]] = [{"CPU": 4.0, "GPU": 0.5}, {"CPU": 4.0, "GPU": 0.5}]
        with pytest.raises(ResourcesError, match="num_gpus = 1"):
            check_resources(service(accelerator="gpu"), halves)
        with pytest.raises(ResourcesError, match="num_cpus = 5"):
            check_resources(service(num_cpus=5), halves)

    @pytest.mark.parametrize(
        "model",
        [
            {"accelerator": "gpu", "num_cpus": 8},
            {"accelerator": "gpu", "memory_gib": 8},
            {"accelerator": "gpu", "accelerator_type": "H100", "num_cpus": 4},
            {"accelerator": "gpu", "num_cpus": 2, "pipeline_parallel_size": 3},
        ],
    )
    def test_a_worker_needs_all_of_its_resources_on_one_node(self, model: dict[str, Any]) -> None:
        # The cluster has enough of each resource alone.
        nodes: list[Mapping[str, Any]] = [
            {"CPU": 16.0, "memory": 64.0 * GIB},
            {"CPU": 2.0, "GPU": 4.0, "memory": 4.0 * GIB, "accelerator_type:H100": 1.0},
            {"CPU": 4.0, "GPU": 1.0, "memory": 4.0 * GIB - 1},
        ]
        with pytest.raises(ResourcesError, match="on one node") as caught:
            check_resources(service(**model), nodes)
        for name in model.keys() - {"accelerator", "pipeline_parallel_size"}:
            assert f"{name} = {model[name]!r}" in str(caught.value)
        check_resources(service(accelerator="gpu", num_cpus=2, memory_gib=4), nodes)

    def test_workers_of_one_replica_may_be_spread(self) -> None:
        singles: list[Mapping[str, Any]] = [{"CPU": 4.0, "GPU": 1.0}] * 3
        check_resources(service(accelerator="gpu", tensor_parallel_size=3), singles)
        with pytest.raises(ResourcesError, match="4 engine worker"):
            check_resources(service(accelerator="gpu", tensor_parallel_size=4), singles)

    @pytest.mark.parametrize("share", [0.1, 0.2, 0.25, 0.3, 0.7])
    def test_fractions_are_not_lost_to_rounding(self, share: float) -> None:
        nodes: list[Mapping[str, Any]] = [{"CPU": 8.0, "GPU": share}]
        check_resources(service(accelerator="gpu", num_gpus=share), nodes)
        with pytest.raises(ResourcesError):
            check_resources(service(accelerator="gpu", num_gpus=share + 0.05), nodes)

    def test_three_tenths_of_a_cpu_hold_three_workers_of_a_tenth(self) -> None:
        assert 0.3 / 0.1 < 3
        check_resources(service(num_cpus=0.1, tensor_parallel_size=3), [{"CPU": 0.3}])
        with pytest.raises(ResourcesError):
            check_resources(service(num_cpus=0.1, tensor_parallel_size=4), [{"CPU": 0.3}])


SLEEPS = ScalingSpec(min_replicas=0)


class TestRunningServe:
    """A Serve that runs already, described as its own details describe it."""

    @pytest.fixture(autouse=True)
    def proxies(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two kinds of proxy, told apart by their names."""
        classes = {"haproxy": "HAProxyManager", "forwarding": "HAProxyManager"}
        monkeypatch.setattr(preflight, "actor_class", lambda name: classes.get(name, "ProxyActor"))
        monkeypatch.setattr(preflight, "forwards_bodies", lambda name: name == "forwarding")

    def details(self, *proxies: str) -> dict[str, Any]:
        return {
            "http_options": {"host": "127.0.0.1", "port": 8000},
            "proxies": {str(i): {"actor_name": name} for i, name in enumerate(proxies)},
        }

    @pytest.mark.parametrize("port", [0, 8000])
    def test_the_same_address_or_any_port_is_accepted(self, port: int) -> None:
        assert check_running_serve(ServiceSpec(port=port), self.details("haproxy")) == 8000

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"port": 8001}, "port = 8001, .* with port = 8000"),
            ({"host": "0.0.0.0"}, "host = '0.0.0.0', .* with host = '127.0.0.1'"),
        ],
    )
    def test_another_address_is_rejected(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(ClusterError, match=message):
            check_running_serve(ServiceSpec(**fields), self.details("haproxy"))

    def test_direct_streaming_needs_haproxy(self) -> None:
        with pytest.raises(ClusterError, match="RAY_SERVE_ENABLE_HA_PROXY=1"):
            check_running_serve(ServiceSpec(), self.details("haproxy", "python"))
        assert check_running_serve(service(scaling=SLEEPS), self.details("python")) == 8000

    @pytest.mark.parametrize(("actual", "described"), [("2048", "with 2048"), (None, "without")])
    def test_another_limit_of_connections_is_rejected(
        self, monkeypatch: pytest.MonkeyPatch, actual: str | None, described: str
    ) -> None:
        monkeypatch.setattr(preflight, "proxy_variable", lambda *_: actual)
        assert check_running_serve(ServiceSpec(), self.details("haproxy")) == 8000
        spec = ServiceSpec(max_connections_per_address=64)
        message = f"max_connections_per_address = 64, but .* {described}"
        with pytest.raises(ClusterError, match=message):
            check_running_serve(spec, self.details("haproxy"))
        monkeypatch.setattr(preflight, "proxy_variable", lambda *_: "64")
        assert check_running_serve(spec, self.details("haproxy")) == 8000

    def test_prefix_aware_routing_needs_a_proxy_that_forwards_bodies(self) -> None:
        spec = service(routing="prefix_aware")
        assert check_running_serve(spec, self.details("forwarding")) == 8000
        with pytest.raises(ClusterError, match="INGRESS_REQUEST_ROUTER_FORWARD_BODY=1"):
            check_running_serve(spec, self.details("forwarding", "haproxy"))
        sleeping = service(routing="prefix_aware", scaling=SLEEPS)
        assert check_running_serve(sleeping, self.details("haproxy")) == 8000


@pytest.mark.parametrize(
    ("routing", "sleeps", "expected"),
    [
        (None, False, False),
        ("power_of_two", False, False),
        ("prefix_aware", False, True),
        ("prefix_aware", True, False),
    ],
)
def test_the_proxy_shows_prompts_only_for_prefix_aware_routing_on_the_direct_path(
    routing: Any, sleeps: bool, expected: bool
) -> None:
    scaling = SLEEPS if sleeps else ScalingSpec()
    assert reads_prompts(service(routing=routing, scaling=scaling)) is expected
