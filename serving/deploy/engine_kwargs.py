"""The checks of ``ModelSpec.engine_kwargs``: arguments of vLLM's engine and of its front end.

A wrong value would otherwise be reported minutes later, when an engine has started.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.compat.vllm import (
    chat_template_names,
    engine_arguments,
    frontend_arguments,
    reasoning_parsers,
    tool_call_parsers,
)
from serving.engine.engine_args import cpu_places
from serving.errors import SpecError
from serving.spec.base import shown
from serving.spec.model import ModelSpec, is_path

if TYPE_CHECKING:
    from jinja2 import Environment

SECRETS = {
    "api_key": "api_key of deploy()",
    "hf_token": "the environment variable HF_TOKEN",
}
"""Arguments whose value no message repeats, and what to use instead."""

OWN_FIELDS = SECRETS | {
    "model": "model.source",
    "served_model_name": "model.id",
    "dtype": "model.dtype",
    "max_model_len": "model.max_model_len",
    "tensor_parallel_size": "model.tensor_parallel_size",
    "pipeline_parallel_size": "model.pipeline_parallel_size",
    "data_parallel_size": "model.data_parallel_size",
    "enable_expert_parallel": "model.expert_parallel",
    "lora_modules": "model.adapters",
    "host": "host",
    "port": "port",
    "root_path": "route_prefix",
    **dict.fromkeys(
        ("allow_credentials", "allowed_origins", "allowed_methods", "allowed_headers"),
        "cors_origins",
    ),
}
"""Arguments that the specification sets itself, and the field to use instead."""

_SERVE_LISTENS = "Ray Serve runs the HTTP server; terminate TLS in front of the endpoint"
_SERVE_LOGS = "Ray Serve owns the log of a replica"
_PRIVATE = "it would write the texts of requests or answers to the log"
_NOT_FORWARDED = "the gate does not forward the routes that it adds"
_SERVE_PLACES = "Ray Serve places the replicas of a data-parallel group"

REJECTED = {
    **dict.fromkeys(
        (
            "uds",
            "ssl_keyfile",
            "ssl_certfile",
            "ssl_ca_certs",
            "ssl_cert_reqs",
            "ssl_ciphers",
            "enable_ssl_refresh",
            "h11_max_incomplete_event_size",
            "h11_max_header_count",
        ),
        _SERVE_LISTENS,
    ),
    **dict.fromkeys(
        (
            "log_config_file",
            "uvicorn_log_level",
            "disable_uvicorn_access_log",
            "disable_access_log_for_endpoints",
        ),
        _SERVE_LOGS,
    ),
    **dict.fromkeys(
        (
            "enable_log_requests",
            "enable_log_outputs",
            "enable_log_deltas",
            "max_log_len",
            "log_error_stack",
        ),
        _PRIVATE,
    ),
    **dict.fromkeys(
        ("enable_tokenizer_info_endpoint", "enable_offline_docs", "tokens_only"), _NOT_FORWARDED
    ),
    **dict.fromkeys(
        (
            "data_parallel_supervisor_port",
            "dp_supervisor_probe_interval_s",
            "dp_supervisor_probe_timeout_s",
            "dp_supervisor_probe_failure_threshold",
        ),
        _SERVE_PLACES,
    ),
    "middleware": "it would run in a replica before the gate's checks",
    "tool_server": "the replica would call other servers, or run code that the model writes",
    "trust_request_chat_template": "a client could replace the template of the model",
}
"""Arguments that no field replaces, and why they are rejected."""

BACKENDS = ("xgrammar", "guidance", "outlines", "lm-format-enforcer", "auto")
"""The backends of vLLM's structured output."""

COMPACT_BACKENDS = BACKENDS[:2]
"""Those that can leave whitespace out of JSON."""


def check_engine_kwargs(model: ModelSpec) -> None:
    """Check the names and values of ``engine_kwargs`` as far as this is possible without vLLM.

    Raises:
        SpecError: vLLM has no such argument, another field sets it, or its value is invalid.
        MissingPackageError: vLLM is not installed here.
    """
    kwargs = model.engine_kwargs
    for name, value in kwargs.items():
        _check_name(name, value)
        _check_type(name, value)
    _check_parsers(kwargs)
    _check_structured_outputs(kwargs.get("structured_outputs_config") or {})
    if (template := kwargs.get("chat_template")) and not is_path(template):
        check_chat_template(template)
    if model.adapters and kwargs.get("enable_lora") is False:
        raise SpecError(
            f"{_item('enable_lora', False)}: model.adapters needs LoRA. Leave enable_lora out."
        )
    least, places = cpu_places(len(model.adapters)), kwargs.get("max_loras")
    if model.adapters and model.accelerator == "cpu" and places is not None and places < least:
        raise SpecError(
            f"{_item('max_loras', places)} must be at least {least} on a CPU, one more than there "
            "are adapters, because vLLM would apply an adapter to requests for the model itself. "
            "Leave it out."
        )
    if kwargs.get("sse_keep_alive_interval", 0) < 0:
        raise _invalid("sse_keep_alive_interval", kwargs["sse_keep_alive_interval"], "at least 0")


def _check_name(name: str, value: Any) -> None:
    if name in OWN_FIELDS:
        item = f"model.engine_kwargs[{name!r}]" if name in SECRETS else _item(name, value)
        raise SpecError(f"{item}: set {OWN_FIELDS[name]} instead.")
    if name in REJECTED:
        raise SpecError(f"{_item(name, value)} is not accepted: {REJECTED[name]}. Leave it out.")
    known = engine_arguments() | frontend_arguments().keys()
    if name not in known:
        close = get_close_matches(name, known - OWN_FIELDS.keys() - REJECTED.keys(), n=1)
        fix = f"Did you mean {close[0]!r}?" if close else "See vLLM's arguments of `vllm serve`."
        raise SpecError(f"{_item(name, value)}: vLLM has no such argument. {fix}")


def _check_type(name: str, value: Any) -> None:
    """Compare a front-end argument with its type; vLLM would do so once the engine has loaded."""
    written = frontend_arguments().get(name)
    if written is not None and not matches(value, written):
        raise _invalid(name, value, written.replace(" | ", " or "))


_TYPES: dict[str, type | tuple[type, ...]] = {
    "bool": bool,
    "int": int,
    "float": (int, float),
    "str": str,
    "dict[str, Any]": dict,
    "list[str]": list,
    "None": type(None),
}


def matches(value: Any, written: str) -> bool:
    """Return whether a value is of a type as Python writes it; an unknown type matches all."""
    return any(_matches_part(value, part) for part in written.split(" | "))


def _matches_part(value: Any, part: str) -> bool:
    if part.startswith("Literal["):
        return value in ast.literal_eval(part.removeprefix("Literal"))
    if part not in _TYPES:
        return True
    # In Python a bool is an int.
    return isinstance(value, _TYPES[part]) and (part == "bool") == isinstance(value, bool)


def _check_parsers(kwargs: dict[str, Any]) -> None:
    for name, plugin, parsers in (
        ("tool_call_parser", "tool_parser_plugin", tool_call_parsers()),
        ("reasoning_parser", "reasoning_parser_plugin", reasoning_parsers()),
    ):
        parser = kwargs.get(name)
        if parser is not None and not isinstance(parser, str):
            raise _invalid(name, parser, "the name of a parser")
        if not parser or parser in parsers or kwargs.get(plugin):
            continue
        close = get_close_matches(str(parser), parsers, n=1)
        fix = f"Did you mean {close[0]!r}?" if close else f"Choose one of {_listed(parsers)}."
        raise SpecError(f"{_item(name, parser)}: vLLM has no such parser. {fix}")
    if kwargs.get("enable_auto_tool_choice") and not kwargs.get("tool_call_parser"):
        raise SpecError(
            f"{_item('enable_auto_tool_choice', True)} needs tool_call_parser, the format in which "
            f"the model writes a call. Choose one of {_listed(tool_call_parsers())}."
        )


def _check_structured_outputs(config: Any) -> None:
    """Check the fields of vLLM's ``StructuredOutputsConfig`` that depend on each other."""
    name = "structured_outputs_config"
    if not isinstance(config, dict):
        raise _invalid(name, config, "a mapping, such as {'backend': 'auto'}")
    backend = config.get("backend", BACKENDS[0])
    if backend not in BACKENDS:
        raise _invalid(name, config, f"a mapping whose backend is one of {', '.join(BACKENDS)}")
    if config.get("disable_any_whitespace") and backend not in COMPACT_BACKENDS:
        raise SpecError(
            f"{_item(name, config)}: disable_any_whitespace needs the backend "
            f"{' or '.join(COMPACT_BACKENDS)}. Choose one of them, or leave it out."
        )


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))


def check_chat_template(text: str) -> None:
    """Raise :class:`SpecError` if a chat template does not compile."""
    from jinja2 import TemplateSyntaxError

    try:
        _template_environment().from_string(text)
    except TemplateSyntaxError as error:
        raise SpecError(
            f"{_item('chat_template', text)}: line {error.lineno} of the template is not valid "
            f"Jinja: {error.message}"
        ) from None


def _template_environment() -> Environment:
    """Return the environment in which transformers compiles a chat template."""
    from jinja2.ext import Extension, LoopControlExtension
    from jinja2.nodes import Node
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationBlock(Extension):
        """The block ``{% generation %}``, which marks the answers for training."""

        tags = {"generation"}  # noqa: RUF012 (Jinja's own class declares a set)

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[LoopControlExtension, GenerationBlock]
    )


def check_files(model: ModelSpec) -> None:
    """Check the files that ``engine_kwargs`` names, if they are on this machine.

    Raises:
        SpecError: A file does not exist, or is not what the argument needs.
    """
    for argument, path in local_paths(model).items():
        if not Path(path).expanduser().exists():
            raise SpecError(f"{argument} = {path!r} does not exist. Give the path of a file here.")


def local_paths(model: ModelSpec) -> dict[str, str]:
    """Return the files and folders that ``engine_kwargs`` names, by argument."""
    return {f"model.engine_kwargs{name}": path for name, path in _local_paths(model)}


def _local_paths(model: ModelSpec) -> Iterator[tuple[str, str]]:
    kwargs = model.engine_kwargs
    template = kwargs.get("chat_template")
    if template and is_path(template) and template not in chat_template_names():
        yield "['chat_template']", template
    for name in ("tool_parser_plugin", "reasoning_parser_plugin"):
        if kwargs.get(name):
            yield f"[{name!r}]", kwargs[name]


def _item(name: str, value: Any) -> str:
    return f"model.engine_kwargs[{name!r}] = {shown(value)}"


def _invalid(name: str, value: Any, allowed: str) -> SpecError:
    return SpecError(f"{_item(name, value)} must be {allowed}.")
