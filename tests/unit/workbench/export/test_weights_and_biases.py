"""Weights & Biases is an optional package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from workbench.errors import MissingPackageError
from workbench.export.weights_and_biases import log_to_wandb
from workbench.runs.run import Run


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingPackageError, match="pip install wandb"):
        log_to_wandb(Run.create(tmp_path, {}))
