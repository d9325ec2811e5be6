"""The actor that stops services by their terms. It outlives every notebook.

There is one per cluster, started with the first service that has a lease or an idle time. Its
state is in the cluster's key-value store, so a restarted actor continues where the last one
stopped.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from serving.deploy import terms_store
from serving.deploy.terms import Terms, TermsState, first_state, next_state

ACTOR_NAME = "llm-workbench-terms"
NAMESPACE = "llm-workbench"
UPDATE_S = 2.0
STARTING = ("not_started", "deploying")
logger = logging.getLogger(__name__)


class Services(Protocol):
    """The services of the cluster, as the keeper sees them."""

    def states(self) -> dict[str, str]:
        """Return the state of each service, by name."""
        ...

    def idle_s(self, name: str) -> float | None:
        """Return the seconds since a service was last in use; None if not known."""
        ...

    def stop(self, name: str) -> None:
        """Start to stop a service, and return at once. A service that is stopping is ignored."""
        ...


class ServeServices:
    """The services that Ray Serve runs."""

    def __init__(self) -> None:
        self._stopping: dict[str, threading.Thread] = {}

    def states(self) -> dict[str, str]:
        """Return the state of each application, by name."""
        from serving.deploy import status

        applications = status.details()["applications"]
        return {name: status.state_name(app["status"]) for name, app in applications.items()}

    def idle_s(self, name: str) -> float | None:
        """Return the seconds without a request, as the service's gates report them."""
        from serving.quotas import actor

        return actor.idle_s(name)

    def stop(self, name: str) -> None:
        """Delete the application in a thread."""
        from serving.deploy import service

        running = self._stopping.get(name)
        if running is None or not running.is_alive():
            self._stopping[name] = threading.Thread(
                target=service.remove, args=(name,), daemon=True
            )
            self._stopping[name].start()


class TermsKeeper:
    """The actor: it applies the terms of every service to it, again and again."""

    def __init__(
        self,
        services: Callable[[], Services] = ServeServices,
        update_s: float = UPDATE_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._services, self._update_s, self._clock = services(), update_s, clock
        # A thread, not a call from outside: an actor that Ray restarts must continue by itself.
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                self.update()
            except Exception:
                logger.exception("could not apply the terms of the services; trying again")
            time.sleep(self._update_s)

    def update(self) -> None:
        """Apply the terms of every service once."""
        running = self._services.states()
        for name, terms in terms_store.all_terms().items():
            state = terms_store.load_state(name)
            known = state if state is not None and state.terms_id == terms.id else None
            if name in running:
                self._apply(name, terms, known, running[name])
            elif known is not None:
                terms_store.forget_terms(name)  # It was deleted, here or by its user.

    def _apply(self, name: str, terms: Terms, known: TermsState | None, serve_state: str) -> None:
        now = self._clock()
        state = next_state(
            name,
            terms,
            known or first_state(terms, now),
            now,
            starting=serve_state in STARTING,
            idle_s=self._services.idle_s(name),
        )
        for message in state.messages[len(known.messages) if known else 0 :]:
            logger.warning(message)
        terms_store.save_state(name, state)
        if state.stopped is not None:
            self._services.stop(name)


def set_terms(name: str, terms: Terms) -> None:
    """Put a service under these terms, in place of earlier ones."""
    terms_store.save_terms(name, terms)
    if terms.limited:
        _start_keeper()


def _start_keeper() -> None:
    import ray

    ray.remote(TermsKeeper).options(
        name=ACTOR_NAME,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
    ).remote()
