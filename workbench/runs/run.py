"""A run is a folder: it grows as the run goes, and can be read after a crash at any point.

`experiment.json` is written when the run is made, `requests.jsonl` and `telemetry.jsonl` get one
line, in one write, as a request ends or a sample is taken, and `summary.json` appears whole when
the run is finished. A last line without its end was cut off by a crash and is not read. Times in
the lines are seconds since the run's start, to the microsecond.
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
from workbench.errors import SettingError
from serving.errors import WorkbenchError

from workbench.runs.jsonl import JsonLines, decode, write_whole

import errno
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from pydantic import ValidationError

from serving.spec.base import explain
from workbench.runs import journal
from workbench.errors import RunError
from workbench.runs.provenance import hardware, versions
from workbench.records import RequestRecord
from workbench.runs.redact import redact
from workbench.records import (Sample, Sampled, columns, line, read)

if TYPE_CHECKING:
    import pandas as pd

    from workbench.records import LoadChange
    from workbench.metrics.summary import Summary


class Run:
    """One run's folder. `Run.create` starts one, `Run.open` reads one back (or goes on with it)."""

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
    ) -> Run:
        """Make the folder `root/run_id` (a UTC time that sorts, and a few random letters).

        `experiment` is everything that shapes the run; its `seed`, if any, is also kept apart.
        Values under names of secrets are redacted at any depth. Raises RunError if the folder is
        there.
        """
        date = now or datetime.now(UTC)
        name = run_id or f"{date:%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise RunError(f"run_id is {name!r}: use letters, digits, '.', '_' and '-'")
        path = Path(root) / name
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            raise RunError(f"run_id is {name!r}, but {path} is there: give another") from None
        plain = redact(experiment)
        document = {
            "run_id": name,
            "date": date.astimezone(UTC).isoformat(timespec="seconds"),
            "seed": plain.get("seed"),
            "experiment": plain,
            "versions": versions(),
            "hardware": hardware(),
        }
        write_whole(path / "experiment.json", document)
        return cls(path, document)

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Raises RunError if there is no run at `path`."""
        file = Path(path) / "experiment.json"
        if not file.exists():
            raise RunError(f"{path} is no run folder: it has no experiment.json")
        return cls(Path(path), decode(file))

    @property
    def run_id(self) -> str:
        return str(self.document["run_id"])

    @property
    def experiment(self) -> dict[str, Any]:
        """The parameters the run was made with, without secrets."""
        return dict(self.document["experiment"])

    def write_plan(self, sessions: int, digest: str) -> None:
        """Keep, in `plan.json`, the SHA-256 of all that a load will send, and when: not the text.

        Two runs with the same one sent the same, byte for byte.
        """
        write_whole(self.path / "plan.json", {"sessions": sessions, "sha256": digest})

    def append_request(self, record: RequestRecord) -> None:
        self._requests.append(_rounded({f.name: getattr(record, f.name) for f in fields(record)}))

    def append_telemetry(self, sample: Sample | Mapping[str, Any]) -> None:
        """One sample of `workbench.records`, or a line like one."""
        fields = line(sample) if isinstance(sample, Sampled) else redact(sample)
        self._telemetry.append(_rounded(fields))

    def append_change(self, change: LoadChange) -> None:
        """What was changed in a live load, and when."""
        self._changes.append(_rounded(redact(change)))

    def finish(self, summary: Summary | Mapping[str, Any]) -> None:
        """Write `summary.json`, whole or not at all."""
        write_whole(self.path / "summary.json", redact(summary))

    def records(self) -> Iterator[RequestRecord]:
        """The requests in the order they ended. RunError names the file and line it cannot read.

        Where the process that ran the load was killed, what its workers left comes after them: what
        ended meanwhile, and as failed what was in progress.
        """
        yield from self._requests.read(RequestRecord)
        if (self.path / journal.FOLDER).is_dir():
            known = {record.request_id for record in self._requests.read(RequestRecord)}
            yield from (r for r in journal.left_in(self.path) if r.request_id not in known)

    def changes(self) -> list[LoadChange]:
        """What was changed in a live load, in order; nothing if it was none."""
        from workbench.records import LoadChange

        return list(self._changes.read(LoadChange))

    def requests_frame(self) -> pd.DataFrame:
        """Return one row per record: its fields, and its latencies in ms by their `key`.

        `attrs["client_health"]` has the verdict if the run is finished; figures show it.
        """
        import pandas as pd

        from workbench.metrics.columns import Columns
        from workbench.metrics.registry import PER_REQUEST

        names = [field.name for field in fields(RequestRecord)]
        records = list(self.records())
        rows = ([getattr(record, name) for name in names] for record in records)
        frame = pd.DataFrame(rows, columns=names)
        numbers = [
            name for name in names if name.endswith(("_s", "_tokens")) and "times" not in name
        ]
        frame[numbers] = frame[numbers].astype(float)
        measured = Columns.read(records)
        for metric in PER_REQUEST:
            frame[metric.key] = metric.formula(measured) * 1e3
        file = self.path / "summary.json"
        if file.exists():
            frame.attrs["client_health"] = decode(file).get("client_health")
        return frame

    def telemetry(self) -> pd.DataFrame:
        """A row a deployment and moment: `samples("deployment")`."""
        return self.samples("deployment")

    def each_sample(self) -> Iterator[Sample]:
        """Every sample in the order they were taken, as `workbench.records` has them.

        Raises RunError for a line that is none.
        """
        for row in self._telemetry.read(dict[str, Any]):
            try:
                yield msgspec.convert({"kind": "deployment"} | row, Sample, strict=False)
            except msgspec.ValidationError as problem:
                raise RunError(f"{self._telemetry.path}: {row} is no sample: {problem}") from None

    def sample_records(self) -> Iterator[Sample]:
        """Every sample in the order it was taken, for what is computed over them."""
        return map(read, self._telemetry.read(dict[str, Any]))

    def samples(self, kind: str) -> pd.DataFrame:
        """A row a sample of one kind (see `workbench.records`); absent values are NaN or None.

        Raises UnknownMetricError for a kind that does not exist. A line without a kind, as older
        runs have, is a deployment's.
        """
        import pandas as pd

        known = columns(kind)
        lines = self._telemetry.read(dict[str, Any])
        rows = [row for row in lines if row.pop("kind", "deployment") == kind]
        frame = pd.DataFrame(rows)
        further = [name for name in frame.columns if name not in known]
        return frame.reindex(columns=[*known, *further])

    def summary(self) -> Summary | None:
        """What `finish` wrote, or None. Raises RunError if it is no summary of this version."""
        from workbench.metrics.summary import Summary

        file = self.path / "summary.json"
        try:
            return Summary.model_validate(decode(file)) if file.exists() else None
        except ValidationError as problem:
            raise RunError(f"{file} is no summary: {explain(problem, Summary)}") from None






def _rounded(line: Mapping[str, Any]) -> dict[str, Any]:
    """To the microsecond: finer is noise, and twice the bytes."""

    def short(name: str, value: Any) -> Any:
        if name == "token_times_s":
            return [float(round(at, 6)) for at in value]
        return float(round(value, 6)) if isinstance(value, float) else value

    return {name: short(name, value) for name, value in line.items()}


LOCATION_PARAMETERS = ("run_root", "run_id")
"""The parameters that say where a run goes; they shape nothing in it."""
