"""Notebooks and their parameters: finding, reading and checking them.

papermill only warns of a parameter that a notebook does not have, and runs the notebook without it.
Here such a parameter is rejected before anything starts.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from workbench.errors import SettingError

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
QUIET = ["--log-level=CRITICAL"]
"""Options of a kernel. Only this process talks to it: its warning about encryption is noise."""

_CONSTANTS = {"true": True, "false": False, "none": None, "null": None}
_KINDS = {
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "text"),
    list: ((list,), "a list"),
    tuple: ((list,), "a list"),
    dict: ((dict,), "a mapping"),
}


def find_notebook(name: str) -> Path:
    """Return the path of a notebook.

    Args:
        name: A path, the name of a file in notebooks/, or the beginning of exactly one such name.

    Raises:
        SettingError: If there is no such notebook, or more than one.
    """
    if name.endswith(".ipynb") and Path(name).is_file():
        return Path(name).resolve()
    known = {path.stem: path for path in sorted(NOTEBOOKS.glob("*.ipynb"))}
    stem = name.removesuffix(".ipynb")
    matches = [stem] if stem in known else [other for other in known if other.startswith(stem)]
    if len(matches) == 1:
        return known[matches[0]]
    reason = "several names begin like this" if matches else "there is no such file"
    raise SettingError(
        f"notebook is {name!r}, but {reason}: give a path or one of {', '.join(matches or known)}"
    )


def parameters_of(path: str | Path) -> dict[str, Any]:
    """Return names and default values in the cell tagged `parameters`, in order.

    Raises:
        SettingError: If the notebook has no such cell, or the cell holds more than plain literals.
    """
    return dict(_assignment(statement, Path(path)) for statement in _statements(Path(path)))


def _statements(path: Path) -> list[ast.stmt]:
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        tagged = [cell for cell in code if "parameters" in cell["metadata"].get("tags", ())]
    except OSError as error:
        raise SettingError(f"cannot read notebook {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise SettingError(
            f"{path} is not a notebook of format 4: save it again in Jupyter"
        ) from None
    if not tagged:
        raise SettingError(f"{path} has no code cell with the tag `parameters`: tag one")
    try:
        return ast.parse("".join(tagged[0]["source"])).body
    except SyntaxError as error:
        raise SettingError(
            f"{path}, cell `parameters`, line {error.lineno}: not valid Python: correct it"
        ) from None


def _assignment(statement: ast.stmt, path: Path) -> tuple[str, Any]:
    match statement:
        case (
            ast.Assign(targets=[ast.Name(id=name)], value=value)
            | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
        ):
            try:
                return name, ast.literal_eval(value)
            except (ValueError, TypeError):
                pass
    raise SettingError(
        f"{path}, cell `parameters`, line {statement.lineno}: `{ast.unparse(statement)}` must "
        "assign a plain literal to one name: move it to another cell"
    )


def check_parameters(path: str | Path, parameters: Mapping[str, Any]) -> None:
    """Check parameters against the names and the types of the notebook's defaults.

    An int is valid for a float, and None for an empty text. A default of None accepts any type.

    Raises:
        SettingError: For an unknown name, or a value of another type.
    """
    defaults, notebook = parameters_of(path), Path(path).stem
    for name, value in parameters.items():
        if name not in defaults:
            close = get_close_matches(name, defaults, n=1, cutoff=0.4)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(defaults)}"
            raise SettingError(f"{name} is not a parameter of notebook {notebook}: {hint}")
        if not _fits(value, defaults[name]):
            raise SettingError(
                f"{name} must be {_KINDS[type(defaults[name])][1]} in notebook {notebook}, like "
                f"its default {defaults[name]!r}, got {value!r}"
            )


def _fits(value: Any, default: Any) -> bool:
    if default is None or type(default) not in _KINDS:
        return True
    if value is None:
        return bool(default == "")
    # In Python a bool is an int, but `true` is not meant as the number 1.
    same = isinstance(value, bool) == isinstance(default, bool)
    return same and isinstance(value, _KINDS[type(default)][0])


def read_value(text: str, default: Any) -> Any:
    """Return the value of a parameter given as text, as papermill's `-p` reads it.

    YAML lists and mappings are read too. If the default is text, the value stays text.
    """
    if isinstance(default, str):
        return None if not default and text == "None" else text
    if text.lower() in _CONSTANTS:
        return _CONSTANTS[text.lower()]
    for kind in (float,) if isinstance(default, float) else (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return _yaml(text, repr(text)) if text.startswith(("[", "{")) else text


def read_parameters(file: Path) -> dict[str, Any]:
    """Return the parameters in a YAML file, as papermill's `-f` reads it.

    Raises:
        SettingError: If the file cannot be read, or is not a YAML mapping.
    """
    try:
        values = _yaml(file.read_text(encoding="utf-8"), str(file))
    except OSError as error:
        raise SettingError(f"cannot read {file}: {error.strerror}") from None
    if not isinstance(values, dict | None):
        raise SettingError(f"{file} must hold `name: value` lines, one per parameter")
    return {str(name): value for name, value in (values or {}).items()}


def _yaml(text: str, source: str) -> Any:
    import yaml
    from papermill.iorw import NoDatesSafeLoader

    try:
        return yaml.load(text, Loader=NoDatesSafeLoader)
    except yaml.YAMLError as error:
        raise SettingError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from None


def default_parameters(notebook: str) -> dict[str, Any]:
    """Return names and default values of the parameters of the notebook with this name.

    Raises:
        SettingError: If the notebook is neither in this folder nor in notebooks/.
    """
    name = f"{notebook.removesuffix('.ipynb')}.ipynb"
    folders = (Path.cwd(), Path.cwd() / "notebooks", NOTEBOOKS)
    file = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if file is None:
        raise SettingError(
            f"notebook is {notebook!r}, but {name} is neither here nor in {NOTEBOOKS}: "
            "give the name of a notebook"
        )
    return parameters_of(file)


def parameters_in(notebook: str, namespace: Mapping[str, Any]) -> dict[str, Any]:
    """Return the current values of a notebook's parameters.

    Args:
        notebook: The name of the notebook.
        namespace: The notebook's own `globals()`.

    Raises:
        SettingError: If the notebook is neither in this folder nor in notebooks/, or if a
            parameter has no value.
    """
    names = default_parameters(notebook)
    missing = [name for name in names if name not in namespace]
    if missing:
        raise SettingError(
            f"{', '.join(missing)} of {notebook} has no value: run the cell `parameters`"
        )
    return {name: namespace[name] for name in names}
