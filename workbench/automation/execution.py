"""Running notebooks with papermill, once or again."""

from __future__ import annotations

import json
import logging
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serving.errors import WorkbenchError
from workbench.automation.kept_kernel import KeptKernel, KernelStartError
from workbench.automation.notebooks import (
    QUIET,
    check_parameters,
    find_notebook,
    parameters_of,
)
from workbench.errors import SettingError
from workbench.runs.run import LOCATION_PARAMETERS

_MAX_ERROR_LENGTH = 500
_START_TIMEOUT_S = 180
"""For the start of a kernel, which takes much longer than usual where the machine is busy."""


class NotebookError(WorkbenchError):
    """A notebook ended with an error. The message has the error and the partial notebook's path."""


def parameters_of_run(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the notebook of a run and its parameters, without locations and secrets.

    Raises:
        RunError: If `folder` is not a run.
        SettingError: If the run does not record its notebook and parameters.
    """
    from workbench.runs.redact import REDACTED
    from workbench.runs.run import Run

    experiment = Run.open(folder).experiment
    name, values = experiment.get("notebook"), experiment.get("parameters")
    if not isinstance(name, str) or not isinstance(values, dict):
        raise SettingError(
            f"cannot repeat {folder}: its experiment.json has no `notebook` and `parameters`. "
            "Run the notebook instead"
        )
    # Where a run is stored, and whether it is shown live, has no effect on it.
    dropped = (*LOCATION_PARAMETERS, "live")
    kept = {n: v for n, v in values.items() if n not in dropped and v != REDACTED}
    redacted = next((name for name, value in kept.items() if REDACTED in json.dumps(value)), None)
    if redacted is not None:
        raise SettingError(
            f"cannot repeat {folder}: a secret was removed from its {redacted}. Run the notebook "
            "with that parameter instead"
        )
    path = find_notebook(name)
    check_parameters(path, kept)
    return path, kept


def run_notebook(
    path: Path,
    parameters: Mapping[str, Any],
    *,
    runs: Path,
    run_id: str,
    kernel: KeptKernel | None = None,
) -> Path:
    """Check and run a notebook as the run `runs/run_id`, and return the executed notebook.

    It runs in `kernel`, by default in a kernel of its own.

    Raises:
        SettingError: For an invalid parameter or run id, or if the run exists.
        NotebookError: If the notebook ends with an error.
    """
    check_parameters(path, parameters)
    if not re.fullmatch(r"\w[\w.-]*", run_id):
        raise SettingError(
            f"run_id may have letters, digits, '.', '_' and '-' only, got {run_id!r}"
        )
    if (runs / run_id).exists():
        raise SettingError(f"run_id is {run_id!r}, but {runs / run_id} exists: give another")
    defaults = parameters_of(path)
    location = {"run_root": str(runs), "run_id": run_id}
    managed = {name: location[name] for name in defaults if name in location}
    # A pipeline shows lines, and no widgets.
    headless = {"live": False} if "live" in defaults else {}
    output = runs / run_id / path.name
    given = {**headless, **parameters, **managed}
    return execute(path, given, output=output, cwd=path.parent, kernel=kernel)


def execute(
    path: Path,
    parameters: Mapping[str, Any],
    *,
    output: Path,
    cwd: Path,
    kernel: KeptKernel | None = None,
) -> Path:
    """Run a notebook, print its output as it comes, and return `output`, the executed notebook.

    The run itself creates the folder of `output`. Until the end, the executed notebook is
    therefore written to a temporary folder. It stays there if the notebook failed before its run.

    Raises:
        NotebookError: If the notebook ends with an error.
    """
    partial = Path(tempfile.mkdtemp(prefix="workbench-")) / output.name
    try:
        error = _papermill(path, partial, parameters, cwd, kernel)
    finally:
        if output.parent.is_dir():
            _move(partial, output)
    if error is not None:
        saved = output if output.exists() else partial
        raise NotebookError(f"notebook {path.stem}, {error} (partial notebook: {saved})")
    if partial.exists():
        output.parent.mkdir(parents=True)
        _move(partial, output)
    return output


def _move(partial: Path, output: Path) -> None:
    if partial.exists():
        shutil.move(partial, output)
    partial.parent.rmdir()


def _papermill(
    path: Path,
    output: Path,
    parameters: Mapping[str, Any],
    cwd: Path,
    kernel: KeptKernel | None,
) -> str | None:
    """Execute the notebook, and return the error that it ended with in one line, if any."""
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        kept = {} if kernel is None else {"km": kernel.ready(cwd)}
        papermill.execute_notebook(
            path,
            output,
            dict(parameters),
            cwd=cwd,
            progress_bar=False,
            log_output=False,
            start_timeout=_START_TIMEOUT_S,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            extra_arguments=QUIET,
            **kept,
        )
    except PapermillExecutionError as error:
        _end(kernel)
        text = " ".join(f"{error.ename}: {error.evalue}".split())
        short = text if len(text) <= _MAX_ERROR_LENGTH else f"{text[:_MAX_ERROR_LENGTH]}…"
        return f"In [{error.exec_count}]: {short}"
    except KernelStartError as error:
        return str(error)
    except DeadKernelError:
        _end(kernel)
        return "the kernel died, possibly out of memory"
    return None


def _end(kernel: KeptKernel | None) -> None:
    """End a kernel in which a notebook failed: the next one must not find what it left."""
    if kernel is not None:
        kernel.end()
