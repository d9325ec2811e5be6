"""Notebooks as instruments: their parameters are known, checked before a start, and recorded.

Papermill alone only warns of a parameter that a notebook does not have, and runs it without.
"""

from __future__ import annotations

import ast
import json
import logging
import re
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from serving.errors import WorkbenchError
from workbench.errors import SettingError
from workbench.runs.run import LOCATION_PARAMETERS

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"

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
_LONGEST_ERROR = 500


class NotebookError(WorkbenchError):
    """A notebook that ended with an error: what it was, and where the partial notebook lies."""


def find_notebook(name: str) -> Path:
    """The notebook at a path, of a name in notebooks/, or the only one there that begins so."""
    if name.endswith(".ipynb") and Path(name).is_file():
        return Path(name).resolve()
    known = {path.stem: path for path in sorted(NOTEBOOKS.glob("*.ipynb"))}
    stem = name.removesuffix(".ipynb")
    found = [stem] if stem in known else [other for other in known if other.startswith(stem)]
    if len(found) == 1:
        return known[found[0]]
    reason = "several begin so" if found else "there is no such file"
    raise SettingError(
        f"notebook is {name!r}, but {reason}: give a path or one of {', '.join(found or known)}"
    )


def parameters_of(path: str | Path) -> dict[str, Any]:
    """Names and default values in the cell tagged `parameters`, in its order.

    Raises SettingError for a notebook without that cell, or with more than plain literals in it.
    """
    return dict(_assigned(statement, Path(path)) for statement in _statements(Path(path)))


def _statements(path: Path) -> list[ast.stmt]:
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        tagged = [cell for cell in code if "parameters" in cell["metadata"].get("tags", ())]
    except OSError as problem:
        raise SettingError(f"notebook {path} cannot be read: {problem.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise SettingError(f"{path} is no notebook of format 4; save it anew in Jupyter") from None
    if not tagged:
        raise SettingError(f"{path} has no code cell with the tag `parameters`; tag one")
    try:
        return ast.parse("".join(tagged[0]["source"])).body
    except SyntaxError as problem:
        raise SettingError(f"{path}, cell `parameters`, line {problem.lineno}: no Python") from None


def _assigned(statement: ast.stmt, path: Path) -> tuple[str, Any]:
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
        f"{path}, cell `parameters`, line {statement.lineno}: `{ast.unparse(statement)}` gives no "
        "plain literal to one name; move it to another cell"
    )


def check_parameters(path: str | Path, given: Mapping[str, Any]) -> None:
    """Raises SettingError for a name that the notebook lacks, or a value of another kind.

    An int will do for a float, None for an empty text; a default of None takes any kind.
    """
    defaults, notebook = parameters_of(path), Path(path).stem
    for name, value in given.items():
        if name not in defaults:
            close = get_close_matches(name, defaults, n=1, cutoff=0.4)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(defaults)}."
            raise SettingError(f"{name} is no parameter of notebook {notebook}: {hint}")
        if not _fits(value, defaults[name]):
            raise SettingError(
                f"{name} is {value!r}, but notebook {notebook} takes "
                f"{_KINDS[type(defaults[name])][1]}, as in its default {defaults[name]!r}"
            )


def _fits(value: Any, default: Any) -> bool:
    if default is None or type(default) not in _KINDS:
        return True
    if value is None:
        return bool(default == "")
    # Python's bool is an int, but no one means 1 request by `true`.
    same = isinstance(value, bool) == isinstance(default, bool)
    return same and isinstance(value, _KINDS[type(default)][0])


def read_value(text: str, default: Any) -> Any:
    """A value given as text: what papermill's -p makes of it, or a YAML list or mapping.

    For a parameter that holds text it stays text, whatever it looks like.
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
    """The parameters in a YAML file, as papermill's -f reads it. Raises SettingError."""
    try:
        values = _yaml(file.read_text(encoding="utf-8"), str(file))
    except OSError as problem:
        raise SettingError(f"{file} cannot be read: {problem.strerror}") from None
    if not isinstance(values, dict | None):
        raise SettingError(f"{file} holds no `name: value` lines; write one for each parameter")
    return {str(name): value for name, value in (values or {}).items()}


def _yaml(text: str, source: str) -> Any:
    import yaml
    from papermill.iorw import NoDatesSafeLoader

    try:
        return yaml.load(text, Loader=NoDatesSafeLoader)
    except yaml.YAMLError as problem:
        raise SettingError(f"{source} is no YAML: {' '.join(str(problem).split())}") from None


def parameters_in(notebook: str, namespace: Mapping[str, Any]) -> dict[str, Any]:
    """What the parameters of `notebook` (its name) are at present, from its own `globals()`.

    Raises SettingError if the notebook is not in this folder nor in notebooks/.
    """
    name = f"{notebook.removesuffix('.ipynb')}.ipynb"
    places = (Path.cwd(), Path.cwd() / "notebooks", NOTEBOOKS)
    file = next((folder / name for folder in places if (folder / name).is_file()), None)
    if file is None:
        raise SettingError(f"notebook is {notebook!r}, but no {name} is here or in {NOTEBOOKS}")
    names = parameters_of(file)
    missing = [name for name in names if name not in namespace]
    if missing:
        raise SettingError(f"{', '.join(missing)} of {notebook} has no value: run its first cell")
    return {name: namespace[name] for name in names}


def recorded(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The notebook of a run and its parameters, without the run's place and without secrets.

    Raises RunError if `folder` is no run, SettingError if it does not say how it was made.
    """
    from workbench.runs.redact import REDACTED
    from workbench.runs.run import Run

    experiment = Run.open(folder).experiment
    name, values = experiment.get("notebook"), experiment.get("parameters")
    if not isinstance(name, str) or not isinstance(values, dict):
        raise SettingError(
            f"{folder} cannot be repeated: its experiment.json names no `notebook` and `parameters`"
        )
    unkept = (
        *LOCATION_PARAMETERS,
        "live",
    )  # where a run is made and who looks on: they shape nothing in it
    kept = {n: v for n, v in values.items() if n not in unkept and v != REDACTED}
    hidden = next((name for name, value in kept.items() if REDACTED in json.dumps(value)), None)
    if hidden is not None:
        raise SettingError(f"{folder} cannot be repeated: a secret was left out of its {hidden}")
    path = find_notebook(name)
    check_parameters(path, kept)
    return path, kept


def run_notebook(path: Path, given: Mapping[str, Any], *, runs: Path, run_id: str) -> Path:
    """Check and run a notebook as the run `runs/run_id`; returns the executed notebook."""
    check_parameters(path, given)
    if not re.fullmatch(r"\w[\w.-]*", run_id):
        raise SettingError(f"run_id is {run_id!r}: use letters, digits, '.', '_' and '-'")
    if (runs / run_id).exists():
        raise SettingError(f"run_id is {run_id!r}, but {runs / run_id} is there: give another")
    known = parameters_of(path)
    place = {"run_root": str(runs), "run_id": run_id}
    own = {name: place[name] for name in known if name in place}
    # Nobody looks: lines that a pipeline shows, not a bar.
    unseen = {"live": False} if "live" in known else {}
    output = runs / run_id / path.name
    return execute(path, {**unseen, **given, **own}, output=output, cwd=path.parent)


def execute(path: Path, parameters: Mapping[str, Any], *, output: Path, cwd: Path) -> Path:
    """Run a notebook, its output shown as it comes; returns `output`, the executed notebook.

    It grows beside `output`'s folder and moves into it at the end, since the run itself makes that
    folder. Raises NotebookError with the notebook's own error.
    """
    growing = output.parent.with_name(f"{output.parent.name}.ipynb")
    growing.parent.mkdir(parents=True, exist_ok=True)
    growing.unlink(missing_ok=True)
    try:
        problem = _papermill(path, growing, parameters, cwd)
    finally:
        if growing.exists() and output.parent.is_dir():
            growing.replace(output)
    if problem is not None:
        lies = output if output.exists() else growing
        raise NotebookError(f"notebook {path.stem}, {problem} (as far as it came: {lies})")
    if growing.exists():
        output.parent.mkdir()
        growing.replace(output)
    return output


def _papermill(path: Path, output: Path, parameters: Mapping[str, Any], cwd: Path) -> str | None:
    """Execute; returns in one line what error the notebook ended with, if any."""
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        papermill.execute_notebook(
            path,
            output,
            dict(parameters),
            cwd=cwd,
            progress_bar=False,
            log_output=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            # The kernel is this process's own: its note on transport encryption is noise.
            extra_arguments=["--log-level=CRITICAL"],
        )
    except PapermillExecutionError as error:
        text = " ".join(f"{error.ename}: {error.evalue}".split())
        short = text if len(text) <= _LONGEST_ERROR else f"{text[:_LONGEST_ERROR]}…"
        return f"In [{error.exec_count}]: {short}"
    except DeadKernelError:
        return "its kernel died: was memory short?"
    return None
