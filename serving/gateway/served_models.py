"""The names of models: which exist, which a tenant may use, and ``GET /v1/models``."""

from __future__ import annotations

from typing import Any

from serving.gateway.asgi import ApiError, invalid_request
from serving.gateway.bodies.body import Body
from serving.gateway.bodies.json_body import safe_name
from serving.gateway.config import GateConfig
from serving.gateway.http_routes import MODELS_ROUTE
from serving.spec.router import AUTO
from serving.spec.tenants import Tenant


def resolve_model(body: Body, config: GateConfig, tenant: Tenant) -> None:
    """Set ``model`` to the name that the application knows: a model's id, or an adapter.

    Raises:
        ApiError: 400, no model is named; 404, there is no such model; or 403, the tenant may not
            use it.
    """
    name = body.model
    if config.auto and name in (None, AUTO):
        return  # the model router chooses among the tenant's models
    if name is None and len(config.models) == 1:
        name = config.models[0].id
    if name is None:
        names = ", ".join(visible_names(config, tenant))
        raise invalid_request(
            f"model is required; the models are {names}.", "missing_parameter", "model"
        )
    model = config.served_model(name)
    if model is None:
        raise no_such_model(name, config, tenant)
    if not config.may_use(tenant, name):
        allowed = ", ".join(tenant.models or ())
        raise ApiError(
            403,
            f"This API key may only use the models {allowed}.",
            "model_not_allowed",
            param="model",
        )
    body.fields["model"] = name if name in model.adapters else model.id


class ModelList:
    """Answers ``GET /v1/models``, and the same with a model's name after it.

    Args:
        created: OpenAI's ``created`` of every model, in seconds since 1970.
        context_length: Context length in tokens of models whose own is not configured.
    """

    def __init__(self, created: int, context_length: int | None) -> None:
        self._created, self._context_length = created, context_length

    def answer(self, path: str, config: GateConfig, tenant: Tenant) -> dict[str, Any]:
        """Return the answer to a path, with the models that the tenant may use.

        Raises:
            ApiError: 404, there is no such model for this tenant.
        """
        names = visible_names(config, tenant)
        if path == MODELS_ROUTE:
            return {"object": "list", "data": [self._card(name, config) for name in names]}
        name = path.removeprefix(f"{MODELS_ROUTE}/")
        if name not in names:
            raise no_such_model(name, config, tenant)
        return self._card(name, config)

    def _card(self, name: str, config: GateConfig) -> dict[str, Any]:
        card: dict[str, Any] = {"id": name, "object": "model", "created": self._created}
        card |= {"owned_by": "workbench", "root": name, "parent": None}
        model = config.served_model(name)
        if model is None:  # the model router
            return card
        card["root"] = model.id
        if name in model.adapters:
            card["parent"] = model.id
        length = model.max_model_len or self._context_length
        return card if length is None else card | {"max_model_len": length}


def visible_names(config: GateConfig, tenant: Tenant) -> list[str]:
    """Return every name that the tenant may put into ``model``."""
    names = [name for model in config.models for name in (*model.names, *model.adapters)]
    allowed = [name for name in names if config.may_use(tenant, name)]
    return [*allowed, AUTO] if config.auto else allowed


def no_such_model(name: str, config: GateConfig, tenant: Tenant) -> ApiError:
    """Return the error for a name that no model has."""
    label = safe_name(name.replace("/", "."))
    subject = f"The model {name!r}" if label else "This model"
    names = ", ".join(visible_names(config, tenant))
    message = f"{subject} does not exist; the models are {names}."
    return ApiError(404, message, "model_not_found", param="model")
