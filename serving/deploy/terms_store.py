"""The terms of services and their states, in the cluster's key-value store.

Every process that is connected to the cluster can read them, and they outlive all of them.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from serving.compat.ray import delete_value, load_value, store_value, stored_keys
from serving.deploy.terms import Terms, TermsState

_TERMS = "llm-workbench:terms:"
_STATE = "llm-workbench:terms-state:"


def save_terms(name: str, terms: Terms) -> None:
    """Store the terms of a service, in place of earlier ones."""
    store_value(_TERMS + name, terms.model_dump_json().encode())


def load_terms(name: str) -> Terms | None:
    """Return the terms of a service, or None."""
    stored = load_value(_TERMS + name)
    return Terms(**json.loads(stored)) if stored else None


def all_terms() -> dict[str, Terms]:
    """Return the terms of every service, by its name."""
    names = [key.removeprefix(_TERMS) for key in stored_keys(_TERMS)]
    loaded = {name: load_terms(name) for name in names}
    return {name: terms for name, terms in loaded.items() if terms is not None}


def forget_terms(name: str) -> None:
    """Delete the terms of a service. Its last state stays, with the reason why it stopped."""
    delete_value(_TERMS + name)


def save_state(name: str, state: TermsState) -> None:
    """Store how far a service is in its terms."""
    store_value(_STATE + name, json.dumps(asdict(state)).encode())


def load_state(name: str) -> TermsState | None:
    """Return how far a service is in its terms, or was when it stopped; None if not known."""
    stored = load_value(_STATE + name)
    if not stored:
        return None
    fields: dict[str, Any] = json.loads(stored)
    lists = {name: tuple(fields[name]) for name in ("warned", "messages")}
    return TermsState(**fields | lists)


def forget(name: str) -> None:
    """Delete everything about a service."""
    forget_terms(name)
    delete_value(_STATE + name)
