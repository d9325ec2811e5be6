"""The folder of a tuning, in which it can be continued.

`tuning.json` says what is compared and how. `trials` has a file for each configuration and rung
that was measured, written when its last load has ended, and `runs` has a run folder for each load.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from serving.spec.base import Frozen
from workbench.errors import RunError, SettingError
from workbench.runs.jsonl import read_document, write_document
from workbench.runs.lock import lock_folder
from workbench.runs.redact import redact
from workbench.tuning.configurations import Configuration
from workbench.tuning.trial import Trial


class Problem(Frozen):
    """Everything that a tuning's results depend on: the content of `tuning.json`."""

    model: dict[str, Any]
    settings: dict[str, list[Any]]
    max_configurations: int | None
    load: dict[str, Any]
    loads: list[float]
    slo: dict[str, Any]
    eta: int
    repeats: int
    seed: int


class Store:
    """The files of one tuning."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def runs(self) -> Path:
        """The folder of the run folders."""
        return self.folder / "runs"

    def read(self, configuration: Configuration, rung: int) -> Trial | None:
        """Return a finished trial, None if there is none.

        Raises:
            RunError: The file is not a trial.
        """
        file = self._file(configuration, rung)
        if not file.exists():
            return None
        try:
            return Trial.model_validate(read_document(file))
        except ValidationError:
            raise RunError(f"{file} is not a trial: remove it to measure again") from None

    def write(self, trial: Trial) -> None:
        """Keep a finished trial."""
        write_document(self._file(trial.configuration, trial.rung), redact(trial))

    def _file(self, configuration: Configuration, rung: int) -> Path:
        return self.folder / "trials" / f"{trial_name(configuration, rung)}.json"


def trial_name(configuration: Configuration, rung: int) -> str:
    """Return the name of a trial's file and the prefix of its runs."""
    return f"rung{rung + 1}-{configuration.name}"


@contextmanager
def open_store(folder: Path, problem: Problem) -> Iterator[Store]:
    """Lock the folder of a tuning, new or to be continued.

    Raises:
        SettingError: The tuning there compares something else; the message has the differences.
        RunError: Another process works in the folder, or its `tuning.json` is invalid.
    """
    file = folder / "tuning.json"
    with lock_folder(folder, "tuning"):
        (folder / "trials").mkdir(exist_ok=True)
        now = redact(problem)
        if file.exists():
            _check_continuation(read_document(file), now, folder)
        else:
            write_document(file, now)
        yield Store(folder)


def _check_continuation(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    changed = list(_differences(before, now))
    if changed:
        raise SettingError(
            f"the tuning in {folder} cannot be continued, because {'; '.join(changed)}: give the "
            "earlier values, or another folder"
        )


def _differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """Yield what differs between two JSON documents, one text per value."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in dict.fromkeys([*before, *now]):
            inner = f"{path}.{name}" if path else name
            yield from _differences(before.get(name), now.get(name), inner)
    elif before != now:
        yield f"{path} was {before!r} and is {now!r}"
