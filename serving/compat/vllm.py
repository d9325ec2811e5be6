"""Private API of vLLM, checked against vLLM 0.29.0. Light to import.

``client`` is vLLM's ``vllm.v1.engine.async_llm.AsyncLLM``. Its ``errored``, ``generate()``,
``is_sleeping()`` and ``collective_rpc()`` belong to the public ``EngineClient``.
"""

from __future__ import annotations

import ast
import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextvars import ContextVar
from copy import copy
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from serving.errors import MissingPackageError

ENGINE_METRICS = {
    "vllm_num_requests_running": "running_requests",
    "vllm_num_requests_waiting": "waiting_requests",
    "vllm_kv_cache_usage_perc": "kv_cache_usage",
    "vllm_prefix_cache_queries": "prefix_queries",
    "vllm_prefix_cache_hits": "prefix_hits",
    "vllm_num_preemptions": "preemptions",
    "vllm_prompt_tokens": "prompt_tokens",
    "vllm_generation_tokens": "output_tokens",
}
"""vLLM's metrics (``vllm.v1.metrics.loggers``), with the colon as Ray exports it, and the field of
a ``ReplicaSample`` that each fills."""

METRIC_PREFIX = "vllm:"
"""Start of the names of all metrics that vLLM registers with prometheus_client."""

ADAPTERS_METRIC = "vllm:lora_requests_info"
"""A gauge whose labels are the LoRA adapters in use, and whose value is the time in seconds."""

TRANSFER_METRICS = {
    "vllm_nixl_xfer_time_seconds_count": "kv_transfers",
    "vllm_nixl_xfer_time_seconds_sum": "kv_transfer_s",
    "vllm_nixl_bytes_transferred_sum": "kv_transfer_bytes",
}
"""The same for the histograms of vLLM's NIXL connector
(``vllm.distributed.kv_transfer.kv_connector.v1.nixl.stats``)."""

OLDER_METRICS = {"vllm_gpu_cache_usage_perc": "vllm_kv_cache_usage_perc"}
"""Names of metrics in earlier versions of vLLM, and their present names."""


@cache
def engine_arguments() -> frozenset[str]:
    """Return every argument of ``vllm.engine.arg_utils.AsyncEngineArgs``.

    Reads the fields of the dataclasses ``EngineArgs`` and ``AsyncEngineArgs`` from the source:
    importing vLLM takes some ten seconds.

    Raises:
        MissingPackageError: vLLM is not installed.
    """
    return frozenset(_fields("engine/arg_utils.py", "EngineArgs", "AsyncEngineArgs"))


@cache
def frontend_arguments() -> dict[str, str]:
    """Return every argument of vLLM's HTTP front end and its type as written in the source.

    Reads ``BaseFrontendArgs`` and ``FrontendArgs`` of ``vllm.entrypoints.launchers.cli_args``. Ray
    Serve LLM takes them beside the engine's arguments.

    Raises:
        MissingPackageError: vLLM is not installed.
    """
    fields = _fields("entrypoints/launchers/cli_args.py", "BaseFrontendArgs", "FrontendArgs")
    return {name: _NAMED_TYPES.get(written, written) for name, written in fields.items()}


_NAMED_TYPES = {"ChatTemplateContentFormatOption": "Literal['auto', 'string', 'openai']"}
"""Types of front-end arguments that another module of vLLM defines."""


@cache
def tool_call_parsers() -> frozenset[str]:
    """Return the values of ``tool_call_parser``.

    Reads ``_TOOL_PARSERS_TO_REGISTER`` of ``vllm.tool_parsers``.
    """
    return _keys("tool_parsers/__init__.py", "_TOOL_PARSERS_TO_REGISTER")


@cache
def reasoning_parsers() -> frozenset[str]:
    """Return the values of ``reasoning_parser``.

    Reads ``_REASONING_PARSERS_TO_REGISTER`` of ``vllm.reasoning``.
    """
    return _keys("reasoning/__init__.py", "_REASONING_PARSERS_TO_REGISTER")


def supports_architecture(name: str) -> bool:
    """Return whether vLLM, or transformers for it, can load a model of this architecture.

    Reads the tables of ``vllm.model_executor.models.registry`` and ``_SUFFIX_TO_DEFAULTS`` of
    ``vllm.config.model``: vLLM also converts the architecture of another task. A plugin (the entry
    points ``vllm.general_plugins``, of which vLLM has two itself) may add any architecture.
    """
    known, suffixes = _architectures(), _architecture_suffixes()
    converted = {
        name.replace(suffix, other)
        for suffix in suffixes
        if name.endswith(suffix)
        for other in suffixes
    }
    plugins = entry_points(group="vllm.general_plugins")
    return bool(
        known & {name, *converted}
        or f'"{name}"' in _transformers_models()
        or any(not plugin.value.startswith("vllm.") for plugin in plugins)
    )


@cache
def _architectures() -> frozenset[str]:
    """Return the architectures of vLLM itself."""
    tables = {
        ast.unparse(node.targets[0]): node.value
        for node in _statements("model_executor/models/registry.py")
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
    }
    parts = [ast.unparse(part) for part in tables["_VLLM_MODELS"].values]
    return frozenset(
        key.value
        for part in parts
        for key in tables[part].keys
        if isinstance(key, ast.Constant) and isinstance(key.value, str)
    )


@cache
def _architecture_suffixes() -> tuple[str, ...]:
    values = (
        node.value
        for node in _statements("config/model.py")
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "_SUFFIX_TO_DEFAULTS"
    )
    defaults = ast.literal_eval(ast.unparse(next(value for value in values if value)))
    return tuple(suffix for suffix, _ in defaults)


@cache
def _transformers_models() -> str:
    """Return the source that names every model class of transformers (``models.auto``)."""
    package = find_spec("transformers")
    if package is None or package.origin is None:
        return ""
    file = Path(package.origin).parent / "models" / "auto" / "modeling_auto.py"
    return file.read_text(encoding="utf-8")


def chat_template_names() -> frozenset[str]:
    """Return the file names of the chat templates that are part of vLLM.

    Lists ``vllm/transformers_utils/chat_templates``.
    """
    folder = _package() / "transformers_utils" / "chat_templates"
    return frozenset(path.name for path in folder.glob("*.jinja"))


def import_parser_plugins(tool_call: str | None, reasoning: str | None) -> None:
    """Register the parsers in these Python files, as vLLM's own launcher does.

    Calls ``vllm.tool_parsers.ToolParserManager.import_tool_parser(path)`` and
    ``vllm.reasoning.ReasoningParserManager.import_reasoning_parser(path)``.
    """
    if tool_call:
        from vllm.tool_parsers import ToolParserManager

        ToolParserManager.import_tool_parser(tool_call)
    if reasoning:
        from vllm.reasoning import ReasoningParserManager

        ReasoningParserManager.import_reasoning_parser(reasoning)


def bound_whitespace_in_calls(limit: int) -> None:
    """Allow at most ``limit`` whitespace characters in a row in the arguments of forced tool calls.

    ``disable_any_whitespace`` has no effect on them. Replaces ``get_model_structural_tag`` of
    ``vllm.tool_parsers.structural_tag_registry``. It returns a ``StructuralTag`` of xgrammar, or
    None; the ``JSONSchemaFormat`` of each tool in it has a field ``max_whitespace_cnt``.
    """
    from vllm.tool_parsers import structural_tag_registry

    original = structural_tag_registry.get_model_structural_tag

    def bounded(*args: Any, **kwargs: Any) -> Any:
        tag = original(*args, **kwargs)
        for schema in _json_schemas(tag):
            schema.max_whitespace_cnt = limit
        return tag

    structural_tag_registry.get_model_structural_tag = bounded


def _json_schemas(node: Any) -> Iterator[Any]:
    """Yield every ``JSONSchemaFormat`` in a structural tag."""
    if isinstance(node, list):
        for item in node:
            yield from _json_schemas(item)
    elif hasattr(node, "max_whitespace_cnt"):
        yield node
    elif hasattr(node, "model_fields_set"):
        for _, value in node:
            yield from _json_schemas(value)


GrammarCall = tuple[str, str]
"""A constructor of ``xgrammar.Grammar`` and its argument; a schema as JSON."""


class _CheckedGrammar:
    """Stands for ``xgrammar.Grammar`` in vLLM's validation, whose results it does not use.

    Args:
        grammar: ``xgrammar.Grammar``.
        error: Returns the error of a call that was checked elsewhere, or None; raises
            ``KeyError`` for any other call.
    """

    def __init__(self, grammar: Any, error: Callable[[GrammarCall], str | None]) -> None:
        self._grammar, self._error = grammar, error
        self.recorded: list[GrammarCall] | None = None

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def build(*args: Any) -> Any:
            call = _grammar_call(name, args)
            if self.recorded is not None:
                self.recorded.append(call)
                return None
            try:
                error = self._error(call)
            except KeyError:
                return getattr(self._grammar, name)(*args)
            if error is not None:
                raise RuntimeError(error)
            return None

        return build


def _grammar_call(name: str, args: tuple[Any, ...]) -> GrammarCall:
    if name == "from_structural_tag" and len(args) == 2:
        tags, triggers = args
        items = [{"begin": t.begin, "schema": t.schema_, "end": t.end} for t in tags]
        return name, json.dumps({"structures": items, "triggers": triggers})
    (grammar,) = args
    return name, grammar if isinstance(grammar, str) else json.dumps(grammar)


def check_grammars_elsewhere(
    client: Any,
    error: Callable[[GrammarCall], str | None],
    check: Callable[[GrammarCall], Awaitable[None]],
) -> None:
    """Await ``check`` for each grammar before vLLM validates a request in the event loop.

    ``SamplingParams`` validates in ``client.add_request()`` through ``validate_xgrammar_grammar``
    of ``vllm.v1.structured_output.backend_xgrammar``, which only calls the constructors of
    ``xgr.Grammar``. This records the calls on a copy of ``params.structured_outputs``, and replaces
    ``xgr`` there. Other backends than "auto" and "xgrammar" validate as before.

    Args:
        client: The engine.
        error: Returns the error that ``check`` found; raises ``KeyError`` if it did not run.
        check: Checks one call. It may raise :func:`validation_error` to reject the request.
    """
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.structured_output import backend_xgrammar as backend

    real = backend.xgr
    grammar = _CheckedGrammar(real.Grammar, error)
    backend.xgr = SimpleNamespace(Grammar=grammar, StructuralTagItem=real.StructuralTagItem)
    add_request = client.add_request

    def recorded_calls(params: Any) -> list[GrammarCall]:
        calls: list[GrammarCall] = []
        grammar.recorded = calls
        try:
            backend.validate_xgrammar_grammar(SimpleNamespace(structured_outputs=copy(params)))
        except (ValueError, VLLMValidationError):
            pass  # vLLM's own validation reports it
        finally:
            grammar.recorded = None
        return calls

    async def checked(request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        constraints = getattr(params, "structured_outputs", None)
        if constraints is not None:
            for call in recorded_calls(constraints):
                await check(call)
        return await add_request(request_id, prompt, params, *args, **kwargs)

    client.add_request = checked


def validation_error(message: str) -> Exception:
    """Return the exception that vLLM answers with 400: ``vllm.exceptions.VLLMValidationError``."""
    from vllm.exceptions import VLLMValidationError

    error: Exception = VLLMValidationError(message)
    return error


def tokenizer_info(client: Any) -> str | None:
    """Return xgrammar's description of the engine's vocabulary, as JSON.

    Calls ``client.get_tokenizer()`` and ``client.model_config.get_vocab_size()``, as
    ``XgrammarBackend`` of ``vllm.v1.structured_output.backend_xgrammar`` does. None for a tokenizer
    that xgrammar cannot read.
    """
    import xgrammar

    try:
        info = xgrammar.TokenizerInfo.from_huggingface(
            client.get_tokenizer(), vocab_size=client.model_config.get_vocab_size()
        )
    except (TypeError, ValueError, AttributeError, RuntimeError):
        return None
    text: str = info.serialize_json()
    return text


class GeneratedTokens:
    """The tokens of one HTTP request that the engine has read and generated so far."""

    def __init__(self) -> None:
        self._requests: list[tuple[Any, Any]] = []
        self._aborted = False
        self._aborts: set[asyncio.Future[None]] = set()

    def add(self, client: Any, state: Any) -> None:
        """Add a request of the engine; abort it if the HTTP request has been aborted."""
        self._requests.append((client, state))
        if self._aborted:
            self._abort(client, state)

    def abort(self) -> None:
        """Abort the engine's requests, also one that the engine has yet to get."""
        self._aborted = True
        for client, state in self._requests:
            self._abort(client, state)

    def _abort(self, client: Any, state: Any) -> None:
        """Call ``AsyncLLM.abort(request_id, internal)`` in a task."""
        abort = asyncio.ensure_future(client.abort(state.request_id, internal=True))
        self._aborts.add(abort)
        abort.add_done_callback(self._aborts.discard)

    def count(self) -> tuple[int, int]:
        """Return the tokens of the prompts and of the answers.

        Reads ``prompt_len``, ``parent_req`` and ``stats.num_generation_tokens`` of each
        ``vllm.v1.engine.output_processor.RequestState``.
        """
        states = [state for _, state in self._requests]
        prompts = {id(state.parent_req or state): state.prompt_len for state in states}
        stats = (state.stats for state in states)
        return sum(prompts.values()), sum(s.num_generation_tokens for s in stats if s is not None)


generated_tokens: ContextVar[GeneratedTokens | None] = ContextVar("generated_tokens", default=None)
"""Where the engine's requests of the HTTP request in progress are counted."""


def count_generated_tokens(client: Any) -> None:
    """Count the tokens of every request in :data:`generated_tokens`.

    Wraps ``client.output_processor.add_request(request, ...)`` and then reads
    ``client.output_processor.request_states``.
    """
    processor = client.output_processor
    add_request = processor.add_request

    def counted(request: Any, *args: Any, **kwargs: Any) -> None:
        add_request(request, *args, **kwargs)
        if (tokens := generated_tokens.get()) is not None:
            tokens.add(client, processor.request_states[request.request_id])

    processor.add_request = counted


def _package() -> Path:
    package = find_spec("vllm")
    if package is None or package.origin is None:
        raise MissingPackageError("The package 'vllm' is not installed. Install it: make setup")
    return Path(package.origin).parent


def _statements(module: str) -> list[ast.stmt]:
    return ast.parse((_package() / module).read_text(encoding="utf-8")).body


def _fields(module: str, *names: str) -> dict[str, str]:
    """Return the fields of dataclasses, and the type of each as written."""
    classes = {node.name: node for node in _statements(module) if isinstance(node, ast.ClassDef)}
    return {
        statement.target.id: ast.unparse(statement.annotation)
        for name in names
        for statement in classes[name].body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }


def _keys(module: str, name: str) -> frozenset[str]:
    """Return the keys of a dictionary that is a constant of a module."""
    values = (
        node.value
        for node in _statements(module)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
    )
    return frozenset(ast.literal_eval(next(values)))


class SchedulerFigures(NamedTuple):
    """The state of the engine's scheduler after a step."""

    running_requests: int
    waiting_requests: int
    kv_cache_usage: float
    """From 0 to 1."""


def scheduler_figures(stats: Any) -> SchedulerFigures:
    """Return the figures of a ``vllm.v1.metrics.stats.SchedulerStats``.

    Reads ``num_running_reqs``, ``num_waiting_reqs``, ``num_skipped_waiting_reqs`` and
    ``kv_cache_usage``.
    """
    waiting = stats.num_waiting_reqs + stats.num_skipped_waiting_reqs
    return SchedulerFigures(stats.num_running_reqs, waiting, stats.kv_cache_usage)


def first_token_times(stats: Any) -> Iterable[float]:
    """Return the times to first token of a step, in seconds.

    Reads ``time_to_first_tokens_iter`` of a ``vllm.v1.metrics.stats.IterationStats``, or of None.
    """
    times: Iterable[float] = getattr(stats, "time_to_first_tokens_iter", ())
    return times


def add_stat_logger(client: Any, stat_logger: Any) -> None:
    """Let vLLM report each step of the engine to ``stat_logger``.

    Appends to ``client.logger_manager.stat_loggers``, whose items have the methods of
    ``vllm.v1.metrics.loggers.StatLoggerBase``.
    """
    client.logger_manager.stat_loggers.append(stat_logger)


def log_idle_step(client: Any) -> None:
    """Report a step without any request to all stat loggers.

    Calls ``client.logger_manager.record(scheduler_stats=SchedulerStats(), iteration_stats=None)``.
    """
    from vllm.v1.metrics.stats import SchedulerStats

    client.logger_manager.record(scheduler_stats=SchedulerStats(), iteration_stats=None)


def unfinished_requests(client: Any) -> Callable[[], int]:
    """Return a function that counts the requests in progress.

    This is ``client.output_processor.get_num_unfinished_requests``.
    """
    count: Callable[[], int] = client.output_processor.get_num_unfinished_requests
    return count


def kv_cache_blocks(client: Any) -> tuple[int, int]:
    """Return the number of blocks in the KV cache and the tokens in a block.

    Reads ``num_gpu_blocks`` and ``block_size`` of ``client.vllm_config.cache_config``.
    """
    config = client.vllm_config.cache_config
    return config.num_gpu_blocks, config.block_size


def generation_error() -> type[Exception]:
    """Return the exception that vLLM raises for a request which its engine gave up.

    This is ``vllm.exceptions.GenerationError``.
    """
    from vllm.exceptions import GenerationError

    error: type[Exception] = GenerationError
    return error


async def generation_error_response(request: Any, error: Exception) -> Any:
    """Answer as vLLM's own server does for a :func:`generation_error`.

    Calls ``generation_error_handler(req, exc)`` of
    ``vllm.entrypoints.serve.exception_handling.handlers.vllm_error``.
    """
    from vllm.entrypoints.serve.exception_handling.handlers import vllm_error

    return await vllm_error.generation_error_handler(request, error)


def error_fields(error: Exception) -> dict[str, Any]:
    """Return the fields of the body that vLLM's own server answers an exception with.

    Calls ``create_error_response(message)`` of
    ``vllm.entrypoints.serve.exception_handling.error_response``.

    Returns:
        ``message``, ``type``, ``param`` and ``code``, which is the HTTP status.
    """
    from vllm.entrypoints.serve.exception_handling.error_response import create_error_response

    fields: dict[str, Any] = create_error_response(error).error.model_dump()
    return fields


_OPENAI, _POOLING = "vllm.entrypoints.openai", "vllm.entrypoints.pooling"
REQUEST_CLASSES = {
    "chat": f"{_OPENAI}.chat_completion.protocol:ChatCompletionRequest",
    "completion": f"{_OPENAI}.completion.protocol:CompletionRequest",
    "responses": f"{_OPENAI}.responses.protocol:ResponsesRequest",
    "messages": "vllm.entrypoints.anthropic.protocol:AnthropicMessagesRequest",
    "count_tokens": "vllm.entrypoints.anthropic.protocol:AnthropicCountTokensRequest",
    "embedding": f"{_POOLING}.embed.protocol:EmbeddingRequest",
    "rerank": f"{_POOLING}.scoring.protocol:RerankRequest",
    "score": f"{_POOLING}.scoring.protocol:ScoreRequest",
    "tokenize": "vllm.entrypoints.serve.tokenize.protocol:TokenizeRequest",
    "detokenize": "vllm.entrypoints.serve.tokenize.protocol:DetokenizeRequest",
}
"""The class of the body of each kind of request, as ``module:name``."""


@cache
def request_class(kind: str) -> Any:
    """Return vLLM's class, or union of classes, for the body of a kind of request.

    The first call imports vLLM, which takes some ten seconds.
    """
    module, _, name = REQUEST_CLASSES[kind].partition(":")
    return getattr(import_module(module), name)
