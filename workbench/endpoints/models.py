"""The models that a running endpoint lists, and their context lengths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from serving.errors import EndpointGoneError
from workbench.endpoints.failures import explain_answer, explain_failure
from workbench.errors import SettingError

if TYPE_CHECKING:
    from serving.spec.service import EndpointSpec
    from workbench.endpoints.connection import Connection


def served_models(spec: EndpointSpec, listed: list[str], url: str) -> list[str]:
    """Return the ids of the spec's models at a running endpoint, then its other ids.

    A server lists a model by the spec's id or by its source.

    Raises:
        SettingError: The endpoint does not serve one of the models.
    """
    ids = []
    for model in spec.models:
        served = next((name for name in (model.model_id, model.source) if name in listed), None)
        if served is None:
            raise SettingError(
                f"model.source must be a model that {url} serves, got {model.source!r}; it serves "
                f"{', '.join(listed)}, so set one of those as source or id"
            )
        ids.append(served)
    return [*ids, *(name for name in listed if name not in ids)]


def context_length(target: Any) -> int | None:
    """Return the context length of the target's model in tokens; None if it is not reported.

    Raises:
        EndpointGoneError: Nothing answers.
        SettingError: The endpoint refuses the key.
    """
    for entry in list_models(target.connection):
        if entry["id"] == target.model_id:
            length = entry.get("max_model_len")
            return None if length is None else int(length)
    return None


def list_models(connection: Connection) -> list[dict[str, Any]]:
    """Return the entries of `/models`; none where the endpoint has no such route.

    Raises:
        EndpointGoneError: Nothing answers.
        SettingError: TLS or the proxy fails, or the endpoint redirects, refuses the key, or is no
            OpenAI endpoint.
    """
    import httpx2

    base_url = connection.base_url
    try:
        with httpx2.Client(**connection.client_options(), timeout=30) as client:
            response = client.get(f"{base_url}/models", headers=connection.request_headers())
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        if reason := explain_failure(error, connection.proxy_name):
            raise SettingError(f"{base_url} cannot be reached: {reason}") from None
        raise EndpointGoneError(
            f"{base_url} does not answer ({type(error).__name__}); check that it is deployed and "
            "that the URL ends in /v1"
        ) from None
    status = response.status_code
    if reason := explain_answer(status, response.headers, connection.proxy_name):
        raise SettingError(f"{base_url} cannot be used: {reason}")
    if status in (401, 403):
        raise SettingError(f"{base_url} refuses the key (HTTP {status}); give another api_key")
    if status == 404:
        return []
    if status != 200:
        raise EndpointGoneError(f"{base_url}/models answers HTTP {status}; try again later")
    try:
        return [{**entry, "id": str(entry["id"])} for entry in response.json()["data"]]
    except (ValueError, KeyError, TypeError):
        raise SettingError(
            f"{base_url} is not an OpenAI endpoint, because its /models returns no list of models; "
            "give the URL of the endpoint up to its /v1"
        ) from None
