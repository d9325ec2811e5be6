"""The public names: loaded when first used, and the same for type checkers as at runtime."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest
from support.paths import ROOT

import workbench as wb
from workbench._lazy import exported_names, lazy_names, type_checking_imports

NAMESPACES = (
    *("analysis", "autoscaling", "baselines", "claims", "classroom", "client"),
    *("experiments", "figures", "guardrail", "router", "teaching", "tuning", "whatif"),
)
LAZY = ["workbench", *(f"workbench.{name}" for name in NAMESPACES if name != "classroom")]
HEAVY = ("ray", "pandas", "plotly", "numpy", "vllm", "IPython", "openai", "pydantic")


@pytest.mark.parametrize("package", LAZY)
class TestEveryLazyPackage:
    def test_has_the_same_names_for_type_checkers_and_at_runtime(self, package: str) -> None:
        module = import_module(package)
        assert module.__file__ is not None
        static = set(exported_names(Path(module.__file__).read_text()))
        names = {name for _, name in static}
        assert set(module.__all__) == names
        assert set(dir(module)) == names
        for origin, name in static:
            value = getattr(module, name)
            if origin == package:
                assert value is import_module(f"{package}.{name}")
            else:
                assert value is getattr(import_module(origin), name)

    def test_exports_every_name_under_its_own_name(self, package: str) -> None:
        """Type checkers re-export `import x as x` and `import *` only."""
        module = import_module(package)
        assert module.__file__ is not None
        for statement in type_checking_imports(Path(module.__file__).read_text()):
            assert all(alias.name in ("*", alias.asname) for alias in statement.names)

    def test_no_function_is_hidden_by_a_module_of_its_name(self, package: str) -> None:
        module = import_module(package)
        for origin, name in exported_names(Path(str(module.__file__)).read_text()):
            if origin != package and hasattr(module, "__path__"):
                assert not (Path(module.__path__[0]) / f"{name}.py").exists()

    def test_rejects_a_name_that_does_not_exist(self, package: str) -> None:
        with pytest.raises(AttributeError, match=rf"'{package}' has no attribute 'deplyo'"):
            _ = import_module(package).deplyo


def test_the_core_has_about_40_names_besides_the_namespaces() -> None:
    assert set(NAMESPACES) <= set(dir(wb))
    assert len(set(dir(wb)) - set(NAMESPACES)) < 55
    assert {"Session", "deploy", "LoadSpec", "measure", "warm_up", "SLO"} <= set(dir(wb))


def test_the_version_is_that_of_the_installed_distribution() -> None:
    assert wb.__version__ == version("llm-serving-workbench")


def test_both_packages_ship_a_type_marker() -> None:
    assert (ROOT / "workbench" / "py.typed").is_file()
    assert (ROOT / "serving" / "py.typed").is_file()


def test_the_import_is_fast_because_nothing_heavy_is_loaded() -> None:
    code = (
        "import json, sys, time; began = time.process_time(); import workbench as wb; dir(wb); "
        "print(json.dumps([time.process_time() - began, sorted(sys.modules)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, modules = json.loads(done.stdout)
    assert seconds < 1  # of a processor, which does not count the time of other processes
    assert not set(HEAVY) & set(modules)


def test_lazy_names_reads_only_the_block_for_type_checkers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sample_names.py").write_text(
        "from typing import TYPE_CHECKING\nfrom math import pi\n"
        "if TYPE_CHECKING:\n    from math import tau as tau\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import_module("sample_names")
    load, names, exported = lazy_names("sample_names")
    assert names() == exported == ["tau"]
    assert load("tau") == pytest.approx(6.283185307)
    with pytest.raises(AttributeError, match="pi"):
        load("pi")


@pytest.mark.slow
def test_mypy_sees_the_signatures(tmp_path: Path) -> None:
    uses = ["wb.deploy", "wb.Session", "wb.ModelSpec", "wb.measure", "wb.figures.search_figure"]
    uses += ["wb.guardrail.redacted", "wb.client.start_clock", "wb.teaching.batching.static"]
    uses += ["wb.__version__", "wb.classroom.Lease", "wb.Poisson"]
    lines = ["import workbench as wb", *(f"reveal_type({use})" for use in uses), "wb.deplyo"]
    file = tmp_path / "uses.py"
    file.write_text("\n".join(lines))
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    revealed = re.findall(r'uses.py:\d+: note: Revealed type is "(.*)"', done.stdout)
    assert len(revealed) == len(uses), done.stdout + done.stderr
    assert not [text for text in revealed if text in ("Any", "builtins.object")]
    assert "serving.spec.service.EndpointSpec" in revealed[0]
    assert "-> workbench.endpoints.deployed.Endpoint" in revealed[0]
    assert 'Module has no attribute "deplyo"' in done.stdout


def test_the_notebooks_use_public_names_only() -> None:
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(notebook.read_text())["cells"]:
            if cell["cell_type"] != "code":
                continue
            for node in ast.walk(ast.parse("".join(cell["source"]))):
                name = _public_name(node)
                if name is not None:
                    assert _exists(name), f"{notebook.name}: {name}"


def _public_name(node: ast.AST) -> str | None:
    """`wb.name` or `wb.namespace.name`, if `node` is such an expression."""
    match node:
        case ast.Attribute(value=ast.Name(id="wb"), attr=name):
            return name
        case ast.Attribute(value=ast.Attribute(value=ast.Name(id="wb"), attr=space), attr=name):
            return f"{space}.{name}" if space in NAMESPACES else None
    return None


def _exists(name: str) -> bool:
    space, _, attribute = name.rpartition(".")
    owner = getattr(wb, space) if space else wb
    return hasattr(owner, attribute)
