"""The state of one request, passed from the gate to the application behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from serving.gateway.asgi import Scope
from serving.gateway.bodies.body import Body
from serving.gateway.config import GateConfig
from serving.gateway.stages import StageTimings
from serving.spec.tenants import Tenant

SCOPE_KEY = "workbench"
"""Key of the context in the ASGI scope; the gate sets it.

:meth:`RequestContext.from_scope` reads it.
"""


@dataclass(slots=True)
class RequestContext:
    """The data that the gate has about an authenticated request.

    Attributes:
        path: Path below the route prefix.
        config: The limits that were in force when the request arrived.
        tenant: The caller.
        timings: Time spent per stage; the application adds its own stages.
        body: The checked body; None for a request without one.
        generated: Returns the tokens of the prompt and of the answer so far, by the engine's count;
            the application sets it.
    """

    path: str
    config: GateConfig
    tenant: Tenant
    timings: StageTimings
    body: Body | None = None
    generated: Callable[[], tuple[int, int]] = lambda: (0, 0)

    @property
    def constrained(self) -> bool:
        """Whether a grammar set by the client restricts the answer's tokens."""
        return self.body is not None and self.body.constrained

    @classmethod
    def from_scope(cls, scope: Scope) -> RequestContext:
        """Return the context of a request that has passed a gate.

        Raises:
            LookupError: The request did not pass a gate.
        """
        context: RequestContext = scope[SCOPE_KEY]
        return context
