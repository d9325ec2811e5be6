"""From plain arguments, as a file or a command line gives them, to a specification and tenants."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from serving.errors import SpecError
from serving.spec.base import shown
from serving.spec.pipeline import PipelineSpec
from serving.spec.service import EndpointSpec, ServiceSpec
from serving.spec.tenants import OWNER, Tenant, check_tenants

PIPELINE_FIELDS = frozenset({"models", "guardrail", "router"})
"""Fields that only a PipelineSpec has."""

JSON_FIELDS = PIPELINE_FIELDS | {"model", "limits", "tenants"}
"""Fields whose text on a command line is JSON."""


def spec_from(args: Mapping[str, Any]) -> tuple[EndpointSpec, dict[str, Any]]:
    """Return the specification, and the arguments that say who may call.

    The fields are a PipelineSpec's if ``models``, ``guardrail`` or ``router`` is among them, and
    otherwise a ServiceSpec's.

    Returns:
        The specification, and ``key_hashes`` and ``tenants`` as far as they are given.

    Raises:
        SpecError: A field is unknown, or its value is invalid.
    """
    fields = {
        name: _from_json(name, value) if name in JSON_FIELDS and isinstance(value, str) else value
        for name, value in args.items()
    }
    callers = {name: fields.pop(name, None) for name in ("key_hashes", "tenants")}
    _check_callers(callers)
    kind = PipelineSpec if fields.keys() & PIPELINE_FIELDS else ServiceSpec
    return kind(**fields), {name: value for name, value in callers.items() if value}


def tenants_from(callers: Mapping[str, Any]) -> tuple[Tenant, ...]:
    """Return the tenants that ``key_hashes`` and ``tenants`` describe.

    Args:
        callers: ``key_hashes``, a list or a text with commas, are hashes of keys without quotas;
            ``tenants`` are the fields of :class:`~serving.spec.tenants.Tenant`.

    Raises:
        SpecError: There is no key, or two tenants share a name or a key.
    """
    key_hashes = callers.get("key_hashes") or ()
    if isinstance(key_hashes, str):
        key_hashes = [key_hash.strip() for key_hash in key_hashes.split(",")]
    owners = [
        Tenant(name=OWNER if not number else f"{OWNER}-{number + 1}", key_hash=key_hash)
        for number, key_hash in enumerate(key_hashes)
    ]
    tenants = (*owners, *(Tenant(**fields) for fields in callers.get("tenants") or ()))
    if not tenants:
        raise SpecError("key_hashes is missing: give the SHA-256 of each accepted API key.")
    check_tenants(tenants)
    return tenants


def _check_callers(callers: Mapping[str, Any]) -> None:
    """Raise :class:`SpecError` if ``key_hashes`` or ``tenants`` is not a list of its kind."""
    hashes, tenants = callers["key_hashes"], callers["tenants"]
    texts = isinstance(hashes, list | tuple) and all(isinstance(item, str) for item in hashes)
    if hashes is not None and not isinstance(hashes, str) and not texts:
        raise SpecError(f"key_hashes must be a list of texts, got {shown(hashes)}.")
    mappings = isinstance(tenants, list | tuple) and all(
        isinstance(item, Mapping) for item in tenants
    )
    if tenants is not None and not mappings:
        raise SpecError(
            f"tenants must be a list of mappings, such as [{{name: ada}}], got {shown(tenants)}."
        )


def _from_json(name: str, value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError as error:
        raise SpecError(
            f"{name} must be a mapping or a list of its fields, or JSON, got {shown(value)} "
            f"({error})."
        ) from None
