"""Tenants: validation, expiry and API keys."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import SecretStr

from serving.errors import SpecError
from serving.spec.tenants import Tenant, check_tenants, issue_keys, key_hash

KEY = "sk-the-plain-key-of-a-tenant"
HASH = hashlib.sha256(KEY.encode()).hexdigest()


class TestTenant:
    @pytest.mark.parametrize("given", [KEY, HASH.upper(), HASH[:-1], "", 7, KEY.encode()])
    def test_key_in_place_of_its_hash_is_refused_and_not_repeated(self, given: Any) -> None:
        with pytest.raises(SpecError, match="key_hash must be a SHA-256 hash") as caught:
            Tenant(name="ada", key_hash=given)
        assert KEY not in str(caught.value)

    @pytest.mark.parametrize(
        "fields",
        [
            {"name": ""},
            {"name": "a\nb"},
            {"name": "-a"},
            {"requests_per_minute": 0},
            {"tokens_per_minute": -1},
            {"max_concurrent_requests": 0},
            {"models": ()},
            {"expires_at": datetime(2031, 1, 1)},
            {"quota": 1},
        ],
    )
    def test_invalid_field_is_named(self, fields: dict[str, Any]) -> None:
        with pytest.raises(SpecError, match=f"Tenant.{next(iter(fields))}"):
            Tenant(**({"name": "ada"} | fields))

    def test_expiry_does_not_depend_on_the_time_zone(self) -> None:
        ends = datetime(2031, 5, 6, 12, tzinfo=UTC)
        tenant = Tenant(name="ada", expires_at=ends)
        assert not tenant.expired(ends - timedelta(microseconds=1))
        assert tenant.expired(ends)
        assert not Tenant(name="ada").expired(datetime.max.replace(tzinfo=UTC))
        assert Tenant(name="ada", expires_at="2031-05-06T14:00:00+02:00") == tenant

    def test_tenant_without_models_may_use_every_model(self) -> None:
        assert Tenant(name="ada").may_use("any")
        tenant = Tenant(name="ada", models=("small", "org/large"))
        assert [tenant.may_use(m) for m in ("small", "org/large", "large", "")] == [1, 1, 0, 0]


class TestIssueKeys:
    def test_tenant_without_a_hash_gets_its_known_key_or_a_new_one(self) -> None:
        given = [Tenant(name="old"), Tenant(name="new"), Tenant(name="given", key_hash=HASH)]
        known = {"old": SecretStr("sk-known-to-this-process"), "gone": SecretStr("x" * 20)}
        tenants, keys = issue_keys(given, known)
        assert list(keys) == ["old", "new"]
        assert keys["old"] is known["old"]
        assert len(keys["new"].get_secret_value()) > 40
        hashes = [key_hash(keys[name].get_secret_value()) for name in ("old", "new")]
        assert [tenant.key_hash for tenant in tenants] == [*hashes, HASH]
        assert keys["new"].get_secret_value() not in repr((tenants, keys))

    def test_duplicate_name_or_key_is_refused(self) -> None:
        with pytest.raises(SpecError, match="values of name, got 'ada' twice"):
            check_tenants((Tenant(name="ada"), Tenant(name="ada")))
        duplicates = (Tenant(name="ada", key_hash=HASH), Tenant(name="bob", key_hash=HASH))
        with pytest.raises(SpecError, match="values of key_hash") as caught:
            issue_keys(duplicates, {})
        assert HASH not in str(caught.value)
