"""The router of a pipeline: its rules, and what a choice of models costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench._lazy import lazy_names

if TYPE_CHECKING:
    from serving.spec.router import BudgetRule as BudgetRule
    from serving.spec.router import CodeRule as CodeRule
    from serving.spec.router import EmbeddingClassifier as EmbeddingClassifier
    from serving.spec.router import LanguageRule as LanguageRule
    from serving.spec.router import LengthRule as LengthRule
    from serving.spec.router import RouterSpec as RouterSpec
    from serving.spec.router import TenantRule as TenantRule
    from workbench.analysis.pii import routing_costs as routing_costs
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
