"""The command `workbench whatif`: one trace under many settings, as a table and a CSV file."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from serving.deploy.manifest import read_spec
from serving.spec.model import ModelSpec
from serving.spec.service import ServiceSpec
from workbench.errors import SettingError
from workbench.metrics.slo import SLO
from workbench.whatif.calibration import Calibration
from workbench.whatif.stored import load_calibration
from workbench.whatif.sweeps import sweep
from workbench.workload.traces import read_trace


def run_whatif(arguments: argparse.Namespace) -> int:
    """Simulate every setting, print the table and write it as CSV."""
    calibration = load_calibration(arguments.calibration)
    grid = dict(read_axis(text) for text in arguments.grid)
    if len(grid) < len(arguments.grid):
        raise SettingError(
            f"--grid must name each field once, got {' '.join(arguments.grid)}; join the values"
        )
    slo = SLO(**dict(read_bound(text) for text in arguments.slo)) if arguments.slo else None
    table = sweep(
        _service(arguments.spec, calibration),
        read_trace(arguments.trace, speed=arguments.speed),
        calibration,
        grid,
        slo=slo,
        seed=arguments.seed,
    )
    table.to_csv(arguments.out, index=False)
    shown = table.drop(columns="marks").to_string(index=False, float_format="{:.4g}".format)
    print(f"{shown}\n\n{_marks_text(table.marks.tolist())}table       {arguments.out}")
    return 0


def read_axis(text: str) -> tuple[str, list[Any]]:
    """Return the field and the values of a text such as `max_replicas=2,4`.

    Raises:
        SettingError: The text has another form.
    """
    name, sign, values = text.partition("=")
    if not sign or not values:
        raise SettingError(f"--grid must be NAME=V1,V2,..., got {text!r}")
    # Commas within brackets belong to a value.
    parts = re.split(r",(?![^\[{]*[\]}])", values)
    return name, [_value(text, part) for part in parts]


def _value(text: str, part: str) -> Any:
    try:
        return yaml.safe_load(part)
    except yaml.YAMLError:
        raise SettingError(
            f"--grid must have numbers or YAML mappings as values, got {part!r} in {text!r}"
        ) from None


def read_bound(text: str) -> tuple[str, float]:
    """Return the name and the milliseconds of a text such as `ttft_ms=500`.

    Raises:
        SettingError: The text has another form.
    """
    name, sign, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        pass
    raise SettingError(f"--slo must be NAME=MS, such as ttft_ms=500, got {name + sign + value!r}")


def _service(file: Path | None, calibration: Calibration) -> ServiceSpec:
    """Return the service of a file, or one of the calibrated model with default settings."""
    if file is None:
        accelerator = "gpu" if calibration.hardware.get("gpus") else "cpu"
        return ServiceSpec(model=ModelSpec(id=calibration.model, accelerator=accelerator))
    spec, _ = read_spec(file)
    if not isinstance(spec, ServiceSpec):
        raise SettingError(
            f"{file} must be the specification of a service with one model, got a "
            f"{type(spec).__name__}; pipelines cannot be simulated"
        )
    return spec


def _marks_text(marks: Sequence[str]) -> str:
    """Return what makes the figures doubtful, once each; empty if nothing does."""
    found = dict.fromkeys(mark for row in marks for mark in row.split("; ") if mark)
    return "".join(f"doubtful    {mark}\n" for mark in found)
