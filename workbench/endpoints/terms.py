"""Deploy a service under terms: its lease, its idle time and its prices."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from serving.cluster import connection
from serving.deploy import terms_keeper, terms_store
from serving.deploy.terms import Terms, check_minutes

if TYPE_CHECKING:
    from serving.deploy.service import ProgressCallback
    from serving.spec.service import EndpointSpec

LISTEN_S = 5.0
"""Seconds between two looks for messages about a service."""


class ReplicaPrices(Protocol):
    """Prices of replicas, such as `workbench.Prices`."""

    def per_replica_hour(self, spec: EndpointSpec) -> dict[str, float]:
        """Return $ per replica-hour by deployment."""
        ...


def make_terms(
    spec: EndpointSpec,
    lease_minutes: float | None,
    idle_minutes: float | None,
    prices: ReplicaPrices | None,
) -> Terms:
    """Return the terms of a deployment.

    Raises:
        SpecError: A time is not above 0 and up to a year.
        SettingError: A price is missing.
    """
    check_minutes("lease_minutes", lease_minutes)
    check_minutes("idle_minutes", idle_minutes)
    return Terms(
        lease_minutes=lease_minutes,
        idle_minutes=idle_minutes,
        dollars_per_replica_hour=prices.per_replica_hour(spec) if prices is not None else {},
    )


@contextmanager
def under_terms(name: str, terms: Terms, cluster: connection.Cluster) -> Iterator[None]:
    """Put a service under these terms while it is deployed; if that fails, under those before.

    The terms apply from the beginning, so a service stops also if this process ends meanwhile.
    """
    previous = terms_store.load_terms(name)
    _set(name, terms)
    try:
        yield
    except BaseException:
        if connection.current() is cluster:
            _set(name, previous or Terms())
        raise


def _set(name: str, terms: Terms) -> None:
    if terms.limited or terms.dollars_per_replica_hour:
        terms_keeper.set_terms(name, terms)
    else:
        terms_store.forget(name)


def pass_on_messages(
    name: str, terms: Terms, cluster: connection.Cluster, notify: ProgressCallback
) -> None:
    """Pass on the warnings about a service, in a thread that ends with the service or its terms."""
    if terms.limited:
        threading.Thread(target=_listen, args=(name, terms, cluster, notify), daemon=True).start()


def _listen(name: str, terms: Terms, cluster: connection.Cluster, notify: ProgressCallback) -> None:
    pause, seen = threading.Event(), 0
    while not pause.wait(LISTEN_S) and connection.current() is cluster:
        try:
            state, current = terms_store.load_state(name), terms_store.load_terms(name)
        except Exception:
            return  # the cluster is gone
        if state is not None and state.terms_id == terms.id:
            for message in state.messages[seen:]:
                notify(message)
            seen = len(state.messages)
            if state.stopped is not None:
                return
        if current is None or current.id != terms.id:
            return
