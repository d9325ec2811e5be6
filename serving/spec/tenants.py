"""Who may call: tenants with hashed keys, what each may use, and until when.

A plain key is known to the process that made it and to its holder; only SHA-256 hashes travel.
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
KEY_VARIABLE = "LLM_WORKBENCH_API_KEY"
"""Where a key may be given to ``deploy``; it goes no further than the process that reads it."""

HASHES_VARIABLE = "LLM_WORKBENCH_KEY_HASHES"
"""Where a cluster's own processes may find the hashes of keys, separated by commas."""

OWNER = "owner"
"""The tenant whose key is the endpoint's own: no quotas, every model, no expiry."""


def new_key() -> str:
    """A random API key with 256 bits of entropy."""
    return "sk-" + secrets.token_urlsafe(32)


def key_hash(key: str) -> str:
    """The hexadecimal SHA-256 of a key: all that leaves this process.

    Raises:
        SpecError: the key is short enough to be guessed from its hash.
    """
    if len(key) < MIN_KEY_LENGTH or not key.isascii() or not key.isprintable():
        raise SpecError(
            f"api_key has {len(key)} characters; it needs at least {MIN_KEY_LENGTH} printable "
            "ASCII characters, because its hash can be read on the cluster. Leave it out to have "
            "one generated."
        )
    return hashlib.sha256(key.encode()).hexdigest()


class Tenant(Strict):
    """One holder of a key, and what that key may use; absent means without that bound."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][\w.@-]{0,62}$",
        description="How records and usage name the holder; unique in a service.",
    )
    key_hash: str | None = Field(
        None,
        description="SHA-256 of the key, as key_hash(key) gives it; deploy makes a key if absent.",
    )
    requests_per_minute: int | None = Field(None, ge=1, description="Requests a minute.")
    tokens_per_minute: int | None = Field(
        None, ge=1, description="Tokens a minute, of prompts and answers together."
    )
    max_concurrent_requests: int | None = Field(
        None, ge=1, description="Requests in progress at once."
    )
    models: tuple[str, ...] | None = Field(
        None, min_length=1, description="Model ids the key may name; every model if absent."
    )
    expires_at: AwareDatetime | None = Field(
        None, description="When the key ends, with its time zone; never if absent."
    )

    @field_validator("key_hash", mode="plain")
    @classmethod
    def _is_a_hash(cls, given: object) -> str | None:
        # The value may be a key, so no message repeats it: SpecError passes pydantic by.
        if given is None or (isinstance(given, str) and _is_sha256(given)):
            return given
        raise SpecError(
            "key_hash needs SHA-256 in 64 lowercase hexadecimal digits, never a key. "
            "key_hash(key) makes it."
        )

    def expired(self, now: datetime) -> bool:
        """Whether the key has ended at ``now`` (which has a time zone)."""
        return self.expires_at is not None and now >= self.expires_at

    def may_use(self, model: str) -> bool:
        """Whether requests may name this model."""
        return self.models is None or model in self.models


def _is_sha256(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")


def holder(presented: str, tenants: tuple[Tenant, ...]) -> Tenant | None:
    """Whose key was presented, if anyone's; takes the same time whichever it is."""
    digest = hashlib.sha256(presented.encode("utf-8", "surrogateescape")).hexdigest()
    matches = [hmac.compare_digest(digest, tenant.key_hash or "") for tenant in tenants]
    return next((tenant for tenant, match in zip(tenants, matches, strict=True) if match), None)


def check_tenants(tenants: tuple[Tenant, ...]) -> None:
    """Raise :class:`SpecError` for names or keys that two tenants share."""
    for field in ("name", "key_hash"):
        seen: set[str] = set()
        for tenant in tenants:
            value = getattr(tenant, field)
            if value is not None and value in seen:
                raise SpecError(
                    f"tenants: two have the same {field}"
                    + (f" {value!r}; rename one." if field == "name" else "; give each its own.")
                )
            seen.add(value)


def issue_keys(
    tenants: Iterable[Tenant], known: Mapping[str, SecretStr]
) -> tuple[tuple[Tenant, ...], dict[str, SecretStr]]:
    """Give each tenant without a hash its known key, or a new one.

    Returns the tenants, each with a hash, and the plain keys by tenant's name: those of this
    process alone, since a tenant that came with a hash has its key elsewhere.
    """
    keyed, keys = [], {}
    for tenant in tenants:
        if tenant.key_hash is None:
            key = keys[tenant.name] = known.get(tenant.name) or SecretStr(new_key())
            tenant = tenant.model_copy(update={"key_hash": key_hash(key.get_secret_value())})
        keyed.append(tenant)
    check_tenants(tuple(keyed))
    return tuple(keyed), keys
