"""Specifications that describe a service: strict, frozen, and light to import."""

from serving.spec.baseline import (
    BaselineSpec,
    Continuous,
    DynamicBatches,
    OneAtATime,
    StaticBatches,
    strategies,
)
from serving.spec.guardrail import (
    EntityRule,
    GuardAnswerFormat,
    GuardEndpoint,
    GuardModel,
    PresidioGuardrail,
)
from serving.spec.limits import Limits
from serving.spec.model import ModelSpec
from serving.spec.pipeline import PipelineSpec
from serving.spec.router import (
    BudgetRule,
    CodeRule,
    EmbeddingClassifier,
    LanguageRule,
    LengthRule,
    RouterSpec,
    TenantRule,
)
from serving.spec.scaling import EnginePressure, Requests, ScalingSpec, TTFTTarget
from serving.spec.service import EndpointSpec, ServiceSpec
from serving.spec.tenants import Tenant

__all__ = [
    "BaselineSpec",
    "BudgetRule",
    "CodeRule",
    "Continuous",
    "DynamicBatches",
    "EmbeddingClassifier",
    "EndpointSpec",
    "EnginePressure",
    "EntityRule",
    "GuardAnswerFormat",
    "GuardEndpoint",
    "GuardModel",
    "LanguageRule",
    "LengthRule",
    "Limits",
    "ModelSpec",
    "OneAtATime",
    "PipelineSpec",
    "PresidioGuardrail",
    "Requests",
    "RouterSpec",
    "ScalingSpec",
    "ServiceSpec",
    "StaticBatches",
    "TTFTTarget",
    "Tenant",
    "TenantRule",
    "strategies",
]
