"""Only `serving.compat` uses private API of Ray and vLLM.

Two modules are exceptions, because Serve pickles them by value for processes that may be unable to
import this project. Their docstrings list what they use.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest
from support.paths import ROOT

PICKLED_BY_VALUE = {
    "serving/deploy/autoscaling.py",
    "serving/deploy/replica_routers.py",
}
MODULES = [
    str(path.relative_to(ROOT))
    for package in ("serving", "workbench")
    for path in sorted((ROOT / package).rglob("*.py"))
    if path.parent != ROOT / "serving" / "compat"
]
CHECKED = [name for name in MODULES if name not in PICKLED_BY_VALUE]

# Modules without a promise of stability, besides those whose name begins with an underscore.
UNSTABLE = re.compile(
    r"^(ray\.(experimental\.internal_kv|serve\.context|dashboard)|ray\.util\.client|"
    r"vllm\.(v1|engine|envs|config|entrypoints|exceptions))\b"
)
# Names of variables, metrics and modules in a text, as in `"RAY_SERVE_..."`.
IN_TEXT = re.compile(
    r"\b(RAY_SERVE_|RAYLLM_|RAY_metrics_)\w+|\b(ray|vllm)(\.\w+)*\._\w+|\bvllm[.:]v1\b|"
    r"\bserve_(autoscaling|deployment|num)_\w+|\bvllm[_:](num|kv|gpu|prefix|prompt|generation)_\w+|"
    r"\bnode_(gpus?|gram)_\w+|node:__internal_head__|/ray\.rpc\."
)
# Public attributes of private classes, which no underscore gives away.
INTERNALS = {"logger_manager", "output_processor", "stat_loggers", "vllm_config", "run_init_node"}
# Methods with an underscore of the standard library and of other packages.
OTHERS = {
    "_exit",  # os
    "_asdict",  # namedtuple
    "_fields",  # namedtuple
    "_replace",  # namedtuple
    "_init_amx",  # torch.cpu
    "_is_amx_tile_supported",  # torch.cpu
    "_handle_msg",  # ipywidgets
    "_topic",  # ipykernel
}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def documentation(tree: ast.AST) -> set[ast.AST]:
    """The strings that are statements: docstrings, which may name what they describe."""
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}


@cache
def own_names() -> frozenset[str]:
    """The names with an underscore that the two packages define."""
    names = set()
    for module in MODULES:
        for node in ast.walk(ast.parse((ROOT / module).read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
    return frozenset(names)


def private_imports(node: ast.AST) -> Iterator[str]:
    """The private modules and names of Ray and vLLM that a statement imports."""
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    for name in names:
        external = name.partition(".")[0] in ("ray", "vllm")
        if external and (UNSTABLE.match(name) or any(map(is_private, name.split(".")))):
            yield name


def private_names(node: ast.AST, own: frozenset[str]) -> Iterator[str]:
    """The private attributes, arguments and texts of an expression."""
    if isinstance(node, ast.Attribute):
        unknown = is_private(node.attr) and node.attr not in own | OTHERS
        if unknown or node.attr in INTERNALS or UNSTABLE.match(ast.unparse(node)):
            yield ast.unparse(node)
    elif isinstance(node, ast.keyword) and node.arg == "_internal":
        yield "_internal"
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield from (match[0] for match in IN_TEXT.finditer(node.value))


def uses(code: str, own: frozenset[str]) -> list[str]:
    """The uses of private API in a module's code, each with its line."""
    tree = ast.parse(code)
    documented = documentation(tree)
    found = {
        (getattr(node, "lineno", 0), name)
        for node in ast.walk(tree)
        if node not in documented
        for name in (*private_imports(node), *private_names(node, own))
    }
    return [f"{line}: {name}" for line, name in sorted(found)]


@pytest.mark.parametrize(
    "code",
    [
        "from ray.serve._private import constants",
        "from ray.serve._private.request_router import RunningReplica",
        "import ray.llm._internal.common",
        "from ray.experimental.internal_kv import _internal_kv_get",
        "from ray.serve.context import something",
        "from vllm.v1.metrics.stats import SchedulerStats",
        "from vllm.exceptions import GenerationError",
        "ray.util.client.ray.is_connected()",
        "server.engine._engine_client.errored",
        "self._get_model_id(name)",
        "client.logger_manager.record()",
        "deployment.options(version='1', _internal=True)",
        "os.environ['RAY_SERVE_ENABLE_HA_PROXY'] = '1'",
        "path = 'ray.serve._private.request_router:PowerOfTwoChoicesRequestRouter'",
        "name = f'RAY_SERVE_HAPROXY_{key}'",
        "total = page.total('serve_num_http_requests')",
        "names = {'vllm_num_requests_running': 'running_requests'}",
    ],
)
def test_a_use_of_private_api_is_found(code: str) -> None:
    assert uses(code, frozenset({"_tasks"}))


@pytest.mark.parametrize(
    "code",
    [
        "from ray import serve",
        "from ray.serve.config import HTTPOptions",
        "from vllm import SamplingParams",
        "'''Reads RAY_SERVE_ENABLE_HA_PROXY and ray.serve._private.constants.'''",
        "self._tasks.cancel()",
        "os._exit(1)",
        "type(error).__name__",
    ],
)
def test_public_api_and_own_names_are_not_found(code: str) -> None:
    assert uses(code, frozenset({"_tasks"})) == []


@pytest.mark.parametrize("module", CHECKED)
def test_no_other_module_uses_private_api(module: str) -> None:
    assert uses((ROOT / module).read_text(encoding="utf-8"), own_names()) == []


def test_a_module_that_serve_pickles_by_value_lists_what_it_uses() -> None:
    for module in PICKLED_BY_VALUE:
        code = (ROOT / module).read_text(encoding="utf-8")
        docstring = ast.get_docstring(ast.parse(code)) or ""
        assert "pickles this module by value" in docstring
        for use in uses(code, own_names()):
            name = use.rpartition(".")[2].rpartition(" ")[2]
            assert name in docstring or name in ("PendingRequest", "RunningReplica"), use
