"""The guardrail of a pipeline: its specification, and how well it detects personal data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench._lazy import lazy_names

if TYPE_CHECKING:
    from serving.guardrail.findings import redacted as redacted
    from serving.guardrail.presidio import Detector as Detector
    from serving.spec.guardrail import EntityRule as EntityRule
    from serving.spec.guardrail import GuardAnswerFormat as GuardAnswerFormat
    from serving.spec.guardrail import GuardEndpoint as GuardEndpoint
    from serving.spec.guardrail import GuardModel as GuardModel
    from serving.spec.guardrail import PresidioGuardrail as PresidioGuardrail
    from workbench.analysis.pii import parse_guardrail_header as parse_guardrail_header
    from workbench.analysis.pii import precision_recall as precision_recall
    from workbench.analysis.pii_texts import pii_texts as pii_texts
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
