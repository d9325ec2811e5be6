"""The configuration of a gate."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from serving.spec.base import Strict
from serving.spec.limits import Limits
from serving.spec.tenants import Tenant, authenticate, check_tenants


class GateConfig(Strict):
    """Tenants and limits of a gate; part of the deployment's ``user_config``."""

    tenants: tuple[Tenant, ...] = Field(
        min_length=1, description="The accepted callers, each with the SHA-256 hash of its key."
    )
    limits: Limits = Field(default_factory=Limits, description="Limits of a single request.")
    max_ongoing_requests: int = Field(ge=1, description="Requests in progress at one gate.")
    max_queued_requests: int = Field(ge=0, description="Requests waiting at one gate.")
    retry_after_s: int = Field(ge=1, description="Seconds in the Retry-After header.")

    def authenticate(self, key: str) -> Tenant | None:
        """Return the tenant with this key, in the same time whichever tenant it is."""
        return authenticate(key, self.tenants)

    @model_validator(mode="after")
    def _check_tenants(self) -> Self:
        check_tenants(self.tenants)
        for tenant in self.tenants:
            if tenant.key_hash is None:
                raise ValueError(f"tenant {tenant.name!r} has no key_hash; give one")
        return self
