"""What was deployed under a name, in the cluster's key-value store, so that it can be restored."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from serving.compat.ray import delete_value, load_value, store_value
from serving.spec.baseline import BaselineSpec
from serving.spec.pipeline import PipelineSpec
from serving.spec.service import EndpointSpec, ServiceSpec
from serving.spec.tenants import Tenant

_KINDS: dict[str, type[EndpointSpec]] = {
    kind.__name__: kind for kind in (ServiceSpec, PipelineSpec, BaselineSpec)
}


class Deployed(NamedTuple):
    """A service that ran."""

    spec: EndpointSpec
    tenants: tuple[Tenant, ...]


def save(spec: EndpointSpec, tenants: tuple[Tenant, ...]) -> None:
    """Record a service that runs. Keys are recorded as hashes."""
    fields = {
        "kind": type(spec).__name__,
        "spec": spec.model_dump(mode="json"),
        "tenants": [tenant.model_dump(mode="json") for tenant in tenants],
    }
    store_value(_key(spec.name), json.dumps(fields).encode())


def load(name: str) -> Deployed | None:
    """Return the last service that was recorded under this name, or None."""
    stored = load_value(_key(name))
    if stored is None:
        return None
    fields: dict[str, Any] = json.loads(stored)
    spec = _KINDS[fields["kind"]](**fields["spec"])
    return Deployed(spec, tuple(Tenant(**tenant) for tenant in fields["tenants"]))


def forget(name: str) -> None:
    """Delete the record of a service."""
    delete_value(_key(name))


def _key(name: str) -> str:
    return f"llm-workbench:deployed:{name}"
