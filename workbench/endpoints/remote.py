"""Any OpenAI-compatible endpoint: its URL, its models, and clients for it."""

from __future__ import annotations

import contextlib
import os
from asyncio import AbstractEventLoop
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from pydantic import SecretStr

from serving.spec.tenants import KEY_VARIABLE
from workbench.clock import running_loop
from workbench.endpoints.connection import NO_KEY, Connection, make_connection
from workbench.endpoints.models import list_models
from workbench.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from openai import AsyncOpenAI, OpenAI

    from serving.deploy.service import ProgressCallback
    from serving.deploy.status import ServiceStatus


class Remote:
    """An endpoint that this process can call.

    Args:
        base_url: URL of the endpoint, up to its `/v1`.
        api_key: The key, as a `SecretStr` that no output shows.
        model_ids: Ids of the models it serves.
        tokenizer: Hugging Face id or folder of the tokenizer that counts prompt tokens.
        connection: How it is reached; default: without TLS settings, by the environment's proxy.
        ours: Whether this process deployed the service. It is then reached without a proxy.
        extra_body: Fields that are added to the body of every request of a load.
        sessions: Whether a load sends each conversation's turns with the same `x-session-id`.

    Attributes:
        adapted: What `workbench.loadgen.accepted` has found out about the server.
    """

    def __init__(
        self,
        base_url: str,
        api_key: SecretStr,
        model_ids: list[str],
        tokenizer: str,
        *,
        connection: Connection | None = None,
        ours: bool = False,
        extra_body: Mapping[str, Any] | None = None,
        sessions: bool = False,
    ) -> None:
        self.base_url = base_url
        self.api_key = api_key
        self.ours = ours
        self.connection = connection or make_connection(
            base_url, api_key.get_secret_value(), proxy=False if ours else None
        )
        self.model_ids = model_ids
        self.tokenizer = tokenizer
        self.extra_body = dict(extra_body or {})
        self.sessions = sessions
        self.adapted: dict[Any, Mapping[str, str | None]] = {}
        self._async: tuple[AbstractEventLoop | None, AsyncOpenAI, object] | None = None

    @property
    def model_id(self) -> str:
        """Id of the first model."""
        return self.model_ids[0]

    @cached_property
    def client(self) -> OpenAI:
        """An ``openai.OpenAI`` for this endpoint."""
        from openai import DefaultHttpxClient, OpenAI

        http_client = DefaultHttpxClient(**self.connection.client_options())
        return OpenAI(**self.connection.openai_options(), http_client=http_client)

    @property
    def async_client(self) -> AsyncOpenAI:
        """An ``openai.AsyncOpenAI`` for this endpoint, on the transport with the lowest CPU cost.

        Each event loop has its own, which is closed at the end of the loop. Connections do not
        outlive their loop, so a shared client would fail in a second ``asyncio.run``.
        """
        from openai import AsyncOpenAI, DefaultAioHttpClient

        loop = running_loop()
        if self._async is None or self._async[0] is not loop:
            http_client = DefaultAioHttpClient(**self.connection.client_options())
            client = AsyncOpenAI(**self.connection.openai_options(), http_client=http_client)
            self._async = loop, client, _close_with_loop(client) if loop else None
        return self._async[1]

    @property
    def deployment(self) -> str | None:
        """The first model's deployment in telemetry; None for an endpoint not deployed here."""
        return None

    @property
    def deployments(self) -> list[str]:
        """The names of its deployments in telemetry: the host, if it was not deployed here."""
        return [urlsplit(self.base_url).netloc.rpartition("@")[2]]

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
        import httpx2

        try:
            with httpx2.Client(**self.connection.client_options(), timeout=5) as client:
                return bool(client.get(f"{self.base_url}/models").status_code)
        except (httpx2.HTTPError, httpx2.InvalidURL):
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
    verify: bool = True,
    ca_bundle: str | Path | None = None,
    proxy: str | bool | None = None,
    headers: Mapping[str, str] | None = None,
    extra_body: Mapping[str, Any] | None = None,
    sessions: bool = False,
) -> Remote:
    """Return an endpoint that this process did not deploy.

    Args:
        base_url: URL of the endpoint, up to its `/v1`.
        model: Id of one of its models; default: all that it lists.
        tokenizer: Hugging Face id or folder of a tokenizer; default: the model's id.
        api_key: The key; default: the environment variable `LLM_WORKBENCH_API_KEY`, else none.
        verify: Whether to check the server's certificate.
        ca_bundle: PEM file with the certificates to trust instead of the system's.
        proxy: URL of a proxy, for any address; False: none; default: the environment variables
            `http_proxy`, `https_proxy` and `no_proxy`, which do not apply to this machine and to
            the cluster.
        headers: Headers to add to every request.
        extra_body: Fields to add to the body of every request of a load.
        sessions: Whether a load sends the turns of a conversation with the same `x-session-id`,
            by which the endpoint chooses a replica.

    Raises:
        EndpointGoneError: Nothing answers at the URL.
        SettingError: An argument is invalid, TLS or the proxy fails, or the endpoint redirects,
            refuses the key, or does not serve the model.
    """
    key = api_key or os.environ.get(KEY_VARIABLE) or NO_KEY
    url = base_url.rstrip("/")
    connection = make_connection(
        url, key, verify=verify, ca_bundle=ca_bundle, proxy=proxy, headers=headers
    )
    listed = [str(entry["id"]) for entry in list_models(connection)]
    if model is not None and listed and model not in listed:
        raise SettingError(f"model must be one of {', '.join(listed)} at {url}, got {model!r}")
    model_ids = listed if model is None else [model]
    if not model_ids:
        raise SettingError(f"{url} lists no model; give model, and check that the URL ends in /v1")
    return Remote(
        url,
        connection.api_key,
        model_ids,
        tokenizer or model_ids[0],
        connection=connection,
        extra_body=extra_body,
        sessions=sessions,
    )


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
