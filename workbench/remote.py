"""Any OpenAI-compatible endpoint, ours or not: where it answers, and clients ready to use."""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from serving.auth import KEY_VARIABLE
from workbench.errors import EndpointGoneError, SettingError

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI


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

    @property
    def model_id(self) -> str:
        """The first model's id."""
        return self.model_ids[0]

    @cached_property
    def client(self) -> OpenAI:
        """An ``openai.OpenAI`` for this endpoint."""
        from openai import OpenAI

        return OpenAI(base_url=self.base_url, api_key=self.api_key.get_secret_value())

    @cached_property
    def async_client(self) -> AsyncOpenAI:
        """An ``openai.AsyncOpenAI`` for this endpoint, on the transport that costs least CPU."""
        from openai import AsyncOpenAI, DefaultAioHttpClient

        return AsyncOpenAI(
            base_url=self.base_url,
            api_key=self.api_key.get_secret_value(),
            http_client=DefaultAioHttpClient(),
        )

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
        raise SettingError(f"{url} lists no model: give one")
    return Remote(url, key, named, tokenizer or named[0])


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
    found: list[dict[str, Any]] = answer.json().get("data", [])
    return found
