"""Any OpenAI-compatible endpoint: its URL, its models, and clients for it."""

from __future__ import annotations

import contextlib
import os
from asyncio import AbstractEventLoop
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pydantic import SecretStr

from serving.errors import EndpointGoneError
from serving.spec.tenants import KEY_VARIABLE
from workbench.clock import running_loop
from workbench.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from openai import AsyncOpenAI, OpenAI

    from serving.deploy.service import ProgressCallback
    from serving.deploy.status import ServiceStatus
    from serving.spec.service import EndpointSpec


class Remote:
    """An endpoint that this process can call.

    Args:
        base_url: URL of the endpoint, up to its `/v1`.
        api_key: The key, as a `SecretStr` that no output shows.
        model_ids: Ids of the models it serves.
        tokenizer: Hugging Face id or folder of the tokenizer that counts prompt tokens.
    """

    def __init__(
        self, base_url: str, api_key: SecretStr, model_ids: list[str], tokenizer: str
    ) -> None:
        self.base_url = base_url
        self.api_key = api_key
        self.model_ids = model_ids
        self.tokenizer = tokenizer
        self._async: tuple[AbstractEventLoop | None, AsyncOpenAI, object] | None = None

    @property
    def model_id(self) -> str:
        """Id of the first model."""
        return self.model_ids[0]

    @cached_property
    def client(self) -> OpenAI:
        """An ``openai.OpenAI`` for this endpoint."""
        from openai import OpenAI

        return OpenAI(base_url=self.base_url, api_key=self.api_key.get_secret_value())

    @property
    def async_client(self) -> AsyncOpenAI:
        """An ``openai.AsyncOpenAI`` for this endpoint, on the transport with the lowest CPU cost.

        Each event loop has its own, which is closed at the end of the loop. Connections do not
        outlive their loop, so a shared client would fail in a second ``asyncio.run``.
        """
        from openai import AsyncOpenAI, DefaultAioHttpClient

        loop = running_loop()
        if self._async is None or self._async[0] is not loop:
            client = AsyncOpenAI(
                base_url=self.base_url,
                api_key=self.api_key.get_secret_value(),
                http_client=DefaultAioHttpClient(),
            )
            self._async = loop, client, _close_with_loop(client) if loop else None
        return self._async[1]

    @property
    def deployment(self) -> str | None:
        """The first model's deployment in telemetry; None for an endpoint not deployed here."""
        return None

    def status(self) -> ServiceStatus:
        """Return the replicas of each deployment; none for an endpoint not deployed here."""
        from serving.deploy.status import ServiceStatus

        return ServiceStatus(self.base_url, "called, not deployed, from here", {})

    def rescale(self, *, progress: ProgressCallback | None = None, **scaling: Any) -> None:
        """Change the scaling of a service that this process deployed.

        Raises:
            SettingError: The endpoint was not deployed here.
        """
        raise SettingError(
            f"{', '.join(scaling) or 'scaling'} cannot be changed, because {self.base_url} was not "
            "deployed from here; give the address of a Ray cluster"
        )

    def answers(self) -> bool:
        """Return whether anything answers at the URL from here."""
        import httpx

        try:
            return bool(httpx.get(f"{self.base_url}/models", timeout=5).status_code)
        except (httpx.HTTPError, httpx.InvalidURL):
            return False

    def delete(self) -> None:
        """Delete the service, where this process deployed it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.delete()

    def __repr__(self) -> str:
        kind = type(self).__name__
        return f"{kind}({self.base_url!r}, models={self.model_ids}, api_key='{self.api_key}')"


def remote(
    base_url: str,
    *,
    model: str | None = None,
    tokenizer: str | None = None,
    api_key: str | None = None,
) -> Remote:
    """Return an endpoint that this process did not deploy.

    Args:
        base_url: URL of the endpoint, up to its `/v1`.
        model: Id of one of its models; default: all that it lists.
        tokenizer: Hugging Face id or folder of a tokenizer; default: the model's id.
        api_key: The key; default: the environment variable `LLM_WORKBENCH_API_KEY`, else none.

    Raises:
        EndpointGoneError: Nothing answers at the URL.
        SettingError: The endpoint refuses the key, or does not serve the model.
    """
    key = SecretStr(api_key or os.environ.get(KEY_VARIABLE) or "none")
    url = base_url.rstrip("/")
    listed = [str(entry["id"]) for entry in _list_models(url, key)]
    if model is not None and listed and model not in listed:
        raise SettingError(f"model must be one of {', '.join(listed)} at {url}, got {model!r}")
    model_ids = listed if model is None else [model]
    if not model_ids:
        raise SettingError(f"{url} lists no model; give model, and check that the URL ends in /v1")
    return Remote(url, key, model_ids, tokenizer or model_ids[0])


def _close_with_loop(client: AsyncOpenAI) -> AsyncIterator[None]:
    """Close the client at the end of the running loop, while the result is kept."""

    async def keep_open() -> AsyncIterator[None]:
        try:
            yield
        finally:
            await client.close()

    # A loop that ends closes every generator that has started (`shutdown_asyncgens`).
    generator = keep_open()
    with contextlib.suppress(StopIteration):
        generator.__anext__().send(None)  # type: ignore[attr-defined]
    return generator


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
    for entry in _list_models(target.base_url, target.api_key):
        if entry["id"] == target.model_id:
            length = entry.get("max_model_len")
            return None if length is None else int(length)
    return None


def _list_models(base_url: str, key: SecretStr) -> list[dict[str, Any]]:
    """Return the entries of `/models`; none where the endpoint has no such route."""
    import httpx

    headers = {"Authorization": f"Bearer {key.get_secret_value()}"}
    try:
        response = httpx.get(f"{base_url}/models", headers=headers, timeout=30)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise EndpointGoneError(
            f"{base_url} does not answer ({type(error).__name__}); check that it is deployed and "
            "that the URL ends in /v1"
        ) from None
    status = response.status_code
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
            f"{base_url} is no OpenAI endpoint, because its /models returns no list of models; "
            "give the URL of the endpoint up to its /v1"
        ) from None
