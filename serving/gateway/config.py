"""The configuration of a gate."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from serving.spec.base import Strict
from serving.spec.limits import Limits
from serving.spec.tenants import Tenant, authenticate, check_tenants


class ServedModel(Strict):
    """A model as clients see it."""

    id: str = Field(description="Name that the application knows.")
    aliases: tuple[str, ...] = Field((), description="Other names for the same model.")
    adapters: tuple[str, ...] = Field((), description="Names of the model's LoRA adapters.")
    max_model_len: int | None = Field(
        None, description="Context length in tokens; None if only the engine knows it."
    )

    @property
    def names(self) -> tuple[str, ...]:
        """Its id and its aliases."""
        return (self.id, *self.aliases)


class GateConfig(Strict):
    """Tenants, models and limits of a gate; part of the deployment's ``user_config``."""

    tenants: tuple[Tenant, ...] = Field(
        min_length=1, description="The accepted callers, each with the SHA-256 hash of its key."
    )
    models: tuple[ServedModel, ...] = Field(
        min_length=1, description="The models that answer, in the order of /v1/models."
    )
    auto: bool = Field(False, description="Whether a model router chooses for model 'auto'.")
    stores_responses: bool = Field(
        False,
        description="Whether /v1/responses may store: one replica, which has the store, and one "
        "tenant.",
    )
    sessions: bool = Field(
        False, description="Whether the header x-session-id chooses the replica of a request."
    )
    cors_origins: tuple[str, ...] = Field(
        (), description="Origins of the web pages that may send requests; '*' allows any."
    )
    limits: Limits = Field(default_factory=Limits, description="Limits of a single request.")
    max_ongoing_requests: int = Field(ge=1, description="Requests in progress at one gate.")
    max_queued_requests: int = Field(ge=0, description="Requests waiting at one gate.")
    retry_after_s: int = Field(ge=1, description="Seconds in the Retry-After header.")

    def served_model(self, name: str) -> ServedModel | None:
        """Return the model with this id, alias or adapter; None if there is none."""
        return next((m for m in self.models if name in (*m.names, *m.adapters)), None)

    def may_use(self, tenant: Tenant, name: str) -> bool:
        """Return whether a tenant may use a model, by whichever of its names.

        An adapter must be in the tenant's list itself: it may have been trained on private data.
        """
        model = self.served_model(name)
        names = (name,) if model is None or name in model.adapters else model.names
        return any(tenant.may_use(each) for each in names)

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
