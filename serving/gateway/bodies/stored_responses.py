"""Stored responses: offered only where the same replica and tenant find them again."""

from __future__ import annotations

import re

from serving.gateway.asgi import ApiError, invalid_request
from serving.gateway.bodies.body import Body
from serving.gateway.config import GateConfig

STORE_FIELDS = ("background", "previous_response_id", "store")
"""Fields of /v1/responses that need a stored response."""

_ROUTE = re.compile(r"/v1/responses/[A-Za-z0-9_-]{1,128}(?P<cancel>/cancel)?")
_REASON = (
    "this endpoint stores no responses. It does so only for a single model with min_replicas and "
    "max_replicas of 1, a single tenant, and VLLM_ENABLE_RESPONSES_API_STORE = '1' in the model's "
    "env"
)


def stored_response_method(path: str) -> str | None:
    """Return the method of a route for a stored response; None for any other path."""
    match = _ROUTE.fullmatch(path)
    return None if match is None else "POST" if match["cancel"] else "GET"


def check_store_route(config: GateConfig) -> None:
    """Check that responses are stored.

    Raises:
        ApiError: 404, they are not; the message says why.
    """
    if not config.stores_responses:
        message = f"There is no such response: {_REASON}."
        raise ApiError(404, message, "responses_not_stored")


def check_store_fields(body: Body, config: GateConfig) -> None:
    """Check that a request needs no stored response where there is none.

    Raises:
        ApiError: 400, it does; the message says why.
    """
    if body.kind != "responses" or config.stores_responses:
        return
    for name in STORE_FIELDS:
        if body.fields.pop(name, None):
            raise invalid_request(
                f"{name} is not accepted here: {_REASON}.", "responses_not_stored", name
            )
    body.fields["store"] = False  # OpenAI's default is to store
