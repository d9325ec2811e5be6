"""A run is a folder that grows while the run continues and can be read after a crash at any point.

`experiment.json` is written when the run is created. `requests.jsonl` and `telemetry.jsonl` get one
line, in one write, when a request ends or a sample is taken, and `load.jsonl` one per change of a
live load. `summary.json` appears complete when the run is finished. A last line without its end was
cut off by a crash and is not read. Times are seconds since the start of the run, to the
microsecond.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from pydantic import ValidationError

from serving.spec.base import explain
from workbench.errors import RunError
from workbench.records import (
    LoadChange,
    RequestRecord,
    Sample,
    SampleBase,
    columns,
    from_line,
    to_line,
)
from workbench.runs import journal, one_load
from workbench.runs.jsonl import JsonLines, read_document, write_document
from workbench.runs.provenance import hardware, versions
from workbench.runs.redact import redact

if TYPE_CHECKING:
    import pandas as pd

    from workbench.metrics.summary import Summary
    from workbench.records import LoadChange

LOCATION_PARAMETERS = ("run_root", "run_id")
"""The parameters that say where a run is stored. They have no influence on its results."""


class Run:
    """The folder of one run. `Run.create` starts one, and `Run.open` reads or continues one."""

    def __init__(self, path: Path, document: Mapping[str, Any]) -> None:
        self.path = path
        self.document = document
        self._requests = JsonLines(path / "requests.jsonl")
        self._telemetry = JsonLines(path / "telemetry.jsonl")
        self._changes = JsonLines(path / "load.jsonl")

    @classmethod
    def create(
        cls,
        root: str | Path,
        experiment: Mapping[str, Any],
        *,
        run_id: str | None = None,
        now: datetime | None = None,
        numbered: bool = False,
    ) -> Run:
        """Create the folder `root/run_id`.

        Args:
            root: The folder of all runs.
            experiment: Everything that influences the results; its `seed`, if any, is also kept
                separately. Values under the names of secrets are redacted at any depth.
            run_id: By default a UTC time that sorts, and a few random letters.
            now: The date of the run.
            numbered: If the folder exists, use `run_id` with the suffix -2, -3, and so on.

        Raises:
            RunError: The name is invalid, or the folder exists.
        """
        date = now or datetime.now(UTC)
        name = run_id or f"{date:%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise RunError(f"run_id is {name!r}: use letters, digits, '.', '_' and '-'")
        if numbered:
            name = _unused_name(Path(root), name)
        path = Path(root) / name
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            raise RunError(f"run_id is {name!r}, but {path} exists: give another") from None
        parameters = redact(experiment)
        document = {
            "run_id": name,
            "date": date.astimezone(UTC).isoformat(timespec="seconds"),
            "seed": parameters.get("seed"),
            "experiment": parameters,
            "versions": versions(),
            "hardware": hardware(),
        }
        write_document(path / "experiment.json", document)
        return cls(path, document)

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Return the run at `path`.

        Raises:
            RunError: The folder is not a run.
        """
        file = Path(path) / "experiment.json"
        if not file.exists():
            raise RunError(f"{path} is not a run folder: it has no experiment.json")
        return cls(Path(path), read_document(file))

    @property
    def run_id(self) -> str:
        """The name of the run."""
        return str(self.document["run_id"])

    @property
    def experiment(self) -> dict[str, Any]:
        """The parameters of the run, without secrets."""
        return dict(self.document["experiment"])

    @property
    def has_load(self) -> bool:
        """Whether a load was started in this folder."""
        return one_load.load_file(self.path) is not None

    def take_load(self, *, live: bool = False) -> None:
        """Reserve the folder for a load, live or planned.

        Raises:
            RunError: It has a load. A folder takes one, as all its times are on one clock.
        """
        one_load.claim(self.path, live=live)

    def write_plan(self, arrivals: int, digest: str) -> None:
        """Write `plan.json`: the number of arrivals and the SHA-256 of what a load will send.

        Two runs with the same digest sent the same bytes at the same times.
        """
        write_document(self.path / "plan.json", {"sessions": arrivals, "sha256": digest})

    def append_request(self, record: RequestRecord) -> None:
        """Append a request that ended.

        Raises:
            RunError: The file cannot be written.
        """
        line = {field.name: getattr(record, field.name) for field in fields(record)}
        self._requests.append(_rounded(line))

    def append_telemetry(self, sample: Sample | Mapping[str, Any]) -> None:
        """Append a sample of `workbench.records`, or a line like one."""
        line = to_line(sample) if isinstance(sample, SampleBase) else redact(sample)
        self._telemetry.append(_rounded(line))

    def append_change(self, change: LoadChange) -> None:
        """Append a change of a live load."""
        self._changes.append(_rounded(redact(change)))

    def finish(self, summary: Summary | Mapping[str, Any]) -> None:
        """Write `summary.json` atomically."""
        write_document(self.path / "summary.json", redact(summary))

    def records(self) -> Iterator[RequestRecord]:
        """Yield the requests in the order in which they ended.

        If the process that ran the load was killed, the journals of its workers follow: what had
        ended, and what was in progress, as failed.

        Raises:
            RunError: A line is invalid. The message names the file and the line.
        """
        yield from self._requests.read(RequestRecord)
        if (self.path / journal.FOLDER).is_dir():
            known = {record.request_id for record in self._requests.read(RequestRecord)}
            yield from (
                record for record in journal.records_in(self.path) if record.request_id not in known
            )

    def changes(self) -> list[LoadChange]:
        """Return the changes of a live load in order; empty for another load.

        Raises:
            RunError: The folder has two live loads, with two clocks.
        """
        changes = list(self._changes.read(LoadChange))
        one_load.check_starts(changes, self.path)
        return changes

    def requests_frame(self) -> pd.DataFrame:
        """Return a row per request: the fields of its record, and its latencies in ms by `key`.

        If the run is finished, `attrs["client_health"]` has its verdict, which figures show.

        Raises:
            RunError: The requests are those of two loads, with two clocks.
        """
        import pandas as pd

        from workbench.metrics.columns import Columns
        from workbench.metrics.registry import PER_REQUEST

        names = [field.name for field in fields(RequestRecord)]
        records = list(self.records())
        one_load.check_requests((record.request_id or "" for record in records), self.path)
        rows = ([getattr(record, name) for name in names] for record in records)
        frame = pd.DataFrame(rows, columns=names)
        numbers = [
            name for name in names if name.endswith(("_s", "_tokens")) and "times" not in name
        ]
        frame[numbers] = frame[numbers].astype(float)
        request_columns = Columns.read(records)
        for metric in PER_REQUEST:
            frame[metric.key] = metric.formula(request_columns) * 1e3
        file = self.path / "summary.json"
        if file.exists():
            frame.attrs["client_health"] = read_document(file).get("client_health")
        return frame

    def samples(self) -> Iterator[Sample]:
        """Yield all samples in the order in which they were taken.

        Raises:
            RunError: A line is not a sample.
        """
        for line in self._telemetry.read(dict[str, Any]):
            try:
                yield from_line(line)
            except msgspec.ValidationError as problem:
                raise RunError(
                    f"{self._telemetry.path}: {line} is not a sample: {problem}"
                ) from None

    def samples_frame(self, kind: str = "deployment") -> pd.DataFrame:
        """Return a row per sample of one kind (see `workbench.records`).

        Absent values are NaN or None. A line without a kind, as in older runs, is a deployment's.

        Raises:
            UnknownMetricError: There is no such kind.
        """
        import pandas as pd

        known = columns(kind)
        lines = self._telemetry.read(dict[str, Any])
        frame = pd.DataFrame([line for line in lines if line.pop("kind", "deployment") == kind])
        further = [name for name in frame.columns if name not in known]
        return frame.reindex(columns=[*known, *further])

    def summary(self) -> Summary | None:
        """Return what `finish` wrote, or None.

        Raises:
            RunError: It is not a summary of this version.
        """
        from workbench.metrics.summary import Summary

        file = self.path / "summary.json"
        try:
            return Summary.model_validate(read_document(file)) if file.exists() else None
        except ValidationError as problem:
            raise RunError(f"{file} is not a summary: {explain(problem, Summary)}") from None


def _rounded(line: Mapping[str, Any]) -> dict[str, Any]:
    """Round to the microsecond: finer digits are noise and double the size."""

    def rounded(name: str, value: Any) -> Any:
        if name == "token_times_s":
            return [float(round(at_s, 6)) for at_s in value]
        return float(round(value, 6)) if isinstance(value, float) else value

    return {name: rounded(name, value) for name, value in line.items()}


def _unused_name(root: Path, name: str) -> str:
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    return next(candidate for candidate in names if not (root / candidate).exists())
