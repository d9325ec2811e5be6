"""Autoscaling policies, and the analysis of their decisions in saved runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench._lazy import lazy_names

if TYPE_CHECKING:
    from serving.spec.scaling import EnginePressure as EnginePressure
    from serving.spec.scaling import Requests as Requests
    from serving.spec.scaling import TTFTTarget as TTFTTarget
    from workbench.analysis.autoscaling import flapping as flapping
    from workbench.analysis.autoscaling import policy_table as policy_table
    from workbench.analysis.autoscaling import recorded_decisions as recorded_decisions
    from workbench.analysis.reactions import load_changes as load_changes
    from workbench.analysis.reactions import run_reactions as run_reactions
    from workbench.analysis.story import closing_lines as closing_lines
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
