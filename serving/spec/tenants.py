"""Tenants: holders of an API key, what each may use, and when the key expires.

Only the process that creates a key and its holder know it. Everything else has its SHA-256 hash.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Mapping
from datetime import datetime

from pydantic import AwareDatetime, Field, SecretStr, field_validator

from serving.errors import SpecError
from serving.spec.base import Strict

MIN_KEY_LENGTH = 16
"""Minimum number of characters of an API key."""

KEY_VARIABLE = "LLM_WORKBENCH_API_KEY"
"""Environment variable with the owner's key. The key stays in the process that reads it."""

TENANT_VARIABLE, TENANT_KEY_VARIABLE = "LLM_WORKBENCH_TENANT", "LLM_WORKBENCH_TENANT_KEY"
"""Environment variables with a student's name and key in a class; an owner has another key."""

HASHES_VARIABLE = "LLM_WORKBENCH_KEY_HASHES"
"""Environment variable with key hashes for a cluster's own processes, separated by commas."""

OWNER = "owner"
"""Name of the tenant with the endpoint's own key: no quotas, every model, no expiry."""


def new_key() -> str:
    """Return a random API key with 256 bits of entropy."""
    return "sk-" + secrets.token_urlsafe(32)


def key_hash(key: str) -> str:
    """Return the SHA-256 hash of a key in 64 hexadecimal digits.

    Raises:
        SpecError: The key is so short that it could be guessed from its hash.
    """
    if len(key) < MIN_KEY_LENGTH or not key.isascii() or not key.isprintable():
        raise SpecError(
            f"api_key must have at least {MIN_KEY_LENGTH} printable ASCII characters, got "
            f"{len(key)} characters; its hash is public on the cluster, so use a longer key, or "
            "leave api_key out to have one generated"
        )
    return hashlib.sha256(key.encode()).hexdigest()


class Tenant(Strict):
    """The holder of an API key and what the key may use. An absent bound does not apply."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][\w.@-]{0,62}$",
        description="Name of the tenant in records and usage; unique in a service.",
    )
    key_hash: str | None = Field(
        None,
        description="SHA-256 hash of the key, from key_hash(key); default: deploy creates a key.",
    )
    requests_per_minute: int | None = Field(
        None, ge=1, description="Maximum number of requests per minute; default: no limit."
    )
    tokens_per_minute: int | None = Field(
        None,
        ge=1,
        description="Maximum number of tokens per minute, of prompts and answers together; "
        "default: no limit.",
    )
    max_concurrent_requests: int | None = Field(
        None, ge=1, description="Maximum number of requests in progress at once; default: no limit."
    )
    models: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="Names of the models and LoRA adapters the key may use; default: all of them.",
    )
    expires_at: AwareDatetime | None = Field(
        None, description="Time at which the key expires, with its time zone; default: never."
    )

    @field_validator("key_hash", mode="plain")
    @classmethod
    def _check_hash(cls, value: object) -> str | None:
        # The value may be a key, so no message repeats it: a SpecError bypasses pydantic's own.
        if value is None or (isinstance(value, str) and _is_sha256(value)):
            return value
        raise SpecError(
            "key_hash must be a SHA-256 hash of 64 lowercase hexadecimal digits, never a key; "
            "key_hash(key) returns it"
        )

    def expired(self, now: datetime) -> bool:
        """Return whether the key has expired at ``now``, a time with a time zone."""
        return self.expires_at is not None and now >= self.expires_at

    def may_use(self, model: str) -> bool:
        """Return whether requests with this key may use the model."""
        return self.models is None or model in self.models


def _is_sha256(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")


def authenticate(presented: str, tenants: tuple[Tenant, ...]) -> Tenant | None:
    """Return the tenant whose key was presented, or None. Takes the same time for every tenant."""
    presented_hash = hashlib.sha256(presented.encode("utf-8", "surrogateescape")).hexdigest()
    matches = [hmac.compare_digest(presented_hash, tenant.key_hash or "") for tenant in tenants]
    return next((tenant for tenant, match in zip(tenants, matches, strict=True) if match), None)


def check_tenants(tenants: tuple[Tenant, ...]) -> None:
    """Check that no two tenants share a name or a key.

    Raises:
        SpecError: Two tenants have the same name or the same key hash.
    """
    for field in ("name", "key_hash"):
        seen: set[str] = set()
        for tenant in tenants:
            value = getattr(tenant, field)
            if value is not None and value in seen:
                fix = f", got {value!r} twice; rename one" if field == "name" else ", got one twice"
                raise SpecError(f"tenants must have different values of {field}{fix}")
            seen.add(value)


def issue_keys(
    tenants: Iterable[Tenant], known: Mapping[str, SecretStr]
) -> tuple[tuple[Tenant, ...], dict[str, SecretStr]]:
    """Give every tenant without a hash its known key, or a new one.

    Args:
        tenants: The tenants, with or without a hash.
        known: Keys that this process created before, by tenant name.

    Returns:
        The tenants, all with a hash, and the plain keys by tenant name. A tenant that came with a
        hash has no key here.

    Raises:
        SpecError: Two tenants have the same name or the same key hash.
    """
    keyed, keys = [], {}
    for tenant in tenants:
        if tenant.key_hash is None:
            key = keys[tenant.name] = known.get(tenant.name) or SecretStr(new_key())
            tenant = tenant.model_copy(update={"key_hash": key_hash(key.get_secret_value())})
        keyed.append(tenant)
    check_tenants(tuple(keyed))
    return tuple(keyed), keys
