"""Tune the arguments of an engine for the highest goodput within an SLO."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench._lazy import lazy_names

if TYPE_CHECKING:
    from workbench.tuning.configurations import Configuration as Configuration
    from workbench.tuning.halving import rung_sizes as rung_sizes
    from workbench.tuning.result import TuningResult as TuningResult
    from workbench.tuning.tuner import tune_engine as tune_engine
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
