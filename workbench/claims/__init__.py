"""State a claim, evaluate it against measurements and keep the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench._lazy import lazy_names

if TYPE_CHECKING:
    from workbench.claims.claim import Claim as Claim
    from workbench.claims.claim import RunInfo as RunInfo
    from workbench.claims.claim import Verdict as Verdict
    from workbench.claims.claim import evaluate_claim as evaluate_claim
    from workbench.claims.claim import write_verdicts as write_verdicts
    from workbench.experiments.paired import evaluate_claims as evaluate_claims
    from workbench.experiments.users import users_verdicts as users_verdicts
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
