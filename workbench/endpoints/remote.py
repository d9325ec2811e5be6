"""Any OpenAI-compatible endpoint, ours or not: where it answers, and clients ready to use."""

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

    from serving.deploy.service import Progress
    from serving.deploy.status import ServiceStatus
    from serving.spec.service import EndpointSpec


class Remote:
    """An endpoint that this process can call. The key is a `SecretStr`: no output shows it.

    `tokenizer` is the Hugging Face id or folder whose tokenizer counts the prompts.
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
        """The first model's id."""
        return self.model_ids[0]

    @cached_property
    def client(self) -> OpenAI:
        """An ``openai.OpenAI`` for this endpoint."""
        from openai import OpenAI

        return OpenAI(base_url=self.base_url, api_key=self.api_key.get_secret_value())

    @property
    def async_client(self) -> AsyncOpenAI:
        """An ``openai.AsyncOpenAI`` for this endpoint, on the transport that costs least CPU.

        One for each event loop: connections do not outlive the loop they were opened on, so that
        one client would fail in the second ``asyncio.run``. It is closed when its loop ends.
        """
        from openai import AsyncOpenAI, DefaultAioHttpClient

        loop = running_loop()
        if self._async is None or self._async[0] is not loop:
            client = AsyncOpenAI(
                base_url=self.base_url,
                api_key=self.api_key.get_secret_value(),
                http_client=DefaultAioHttpClient(),
            )
            self._async = loop, client, _closing(client) if loop else None
        return self._async[1]

    @property
    def deployment(self) -> str | None:
        """The first model's deployment, as telemetry names it; None where it is another's."""
        return None

    def status(self) -> ServiceStatus:
        """Each deployment's replicas, by Serve's own account; none where they are another's."""
        from serving.deploy.status import ServiceStatus

        return ServiceStatus(self.base_url, "called, not deployed, from here", {})

    def rescale(self, *, progress: Progress | None = None, **scaling: Any) -> None:
        """Change the scaling of what this process deployed; SettingError where it is another's."""
        raise SettingError(
            f"{self.base_url} was not deployed from here, so {', '.join(scaling) or 'its scaling'} "
            "cannot be changed; give the address of a Ray cluster"
        )

    def answers(self) -> bool:
        """Whether anything answers at its address from here."""
        import httpx

        try:
            return bool(httpx.get(f"{self.base_url}/models", timeout=5).status_code)
        except (httpx.HTTPError, httpx.InvalidURL):
            return False

    def delete(self) -> None:
        """Delete what this process deployed; another's endpoint stays as it is."""

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
    """An endpoint that somebody else serves, at `base_url` (with its `/v1`).

    `model` is one of its models, by default the first that it lists; `tokenizer` by default the
    model's own name; `api_key` by default the variable `LLM_WORKBENCH_API_KEY`, else none.
    Raises EndpointGoneError if nothing answers there, SettingError for a key or a model that it
    does not take.
    """
    key = SecretStr(api_key or os.environ.get(KEY_VARIABLE) or "none")
    url = base_url.rstrip("/")
    ids = [str(entry["id"]) for entry in _models(url, key)]
    if model is not None and ids and model not in ids:
        raise SettingError(f"model is {model!r}, but {url} serves {', '.join(ids)}")
    named = ids if model is None else [model]
    if not named:
        raise SettingError(f"{url} lists no model: name one, and see that the address ends in /v1")
    return Remote(url, key, named, tokenizer or named[0])


def _closing(client: AsyncOpenAI) -> AsyncIterator[None]:
    """Have the running loop close the client at its end; what is returned must be kept."""

    async def opened() -> AsyncIterator[None]:
        try:
            yield
        finally:
            await client.close()

    # A loop that ends closes every generator that has begun (``shutdown_asyncgens``).
    begun = opened()
    with contextlib.suppress(StopIteration):
        begun.__anext__().send(None)  # type: ignore[attr-defined]
    return begun


def served_models(spec: EndpointSpec, listed: list[str], url: str) -> list[str]:
    """The ids that `listed` has for the spec's models, in its order, then any others.

    A server names a model by its own id, or as the hub does. Raises SettingError for one that it
    does not serve.
    """
    found = []
    for model in spec.models:
        names = [model.model_id, model.source]
        name = next((name for name in names if name in listed), None)
        if name is None:
            raise SettingError(
                f"model.source = {model.source!r}, but {url} serves {', '.join(listed)}: "
                "name one of those as the source (or the model's id)"
            )
        found.append(name)
    return [*found, *(name for name in listed if name not in found)]


def context_length(target: Any) -> int | None:
    """The most tokens, prompt and answer, that the target's model takes; None if it is not told.

    Raises EndpointGoneError if nothing answers, SettingError for a refused key.
    """
    for entry in _models(target.base_url, target.api_key):
        if entry["id"] == target.model_id:
            length = entry.get("max_model_len")
            return None if length is None else int(length)
    return None


def _models(base_url: str, key: SecretStr) -> list[dict[str, Any]]:
    import httpx

    headers = {"Authorization": f"Bearer {key.get_secret_value()}"}
    try:
        answer = httpx.get(f"{base_url}/models", headers=headers, timeout=30)
    except (httpx.HTTPError, httpx.InvalidURL) as problem:
        raise EndpointGoneError(
            f"{base_url} does not answer ({type(problem).__name__}). Is it deployed, and does the "
            "address end in /v1?"
        ) from None
    if answer.status_code in (401, 403):
        raise SettingError(f"{base_url} refuses the key (HTTP {answer.status_code}): give api_key")
    if answer.status_code == 404:
        return []  # it speaks OpenAI's protocol, but lists no models
    if answer.status_code != 200:
        raise EndpointGoneError(f"{base_url}/models answers HTTP {answer.status_code}")
    try:
        listed = answer.json()["data"]
        return [{**entry, "id": str(entry["id"])} for entry in listed]
    except (ValueError, KeyError, TypeError):
        raise SettingError(
            f"{base_url} is no OpenAI endpoint: its /models is no list of models. Check that the "
            "address is the endpoint's own, up to and with its /v1"
        ) from None
