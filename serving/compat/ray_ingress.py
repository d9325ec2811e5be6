"""Private API of Ray Serve LLM's ingress, checked against Ray 2.60.0.

Importing this module imports Ray Serve LLM; only the ingress and its tests do so.
"""

from __future__ import annotations

from typing import Any

from ray.llm._internal.serve.core.configs.openai_api_models import (
    ChatCompletionRequest as ChatCompletionRequest,
)
from ray.llm._internal.serve.core.configs.openai_api_models import (
    CompletionRequest as CompletionRequest,
)
from ray.llm._internal.serve.core.configs.openai_api_models import ErrorResponse as ErrorResponse
from ray.llm._internal.serve.core.configs.openai_api_models import ModelCard as ModelCard
from ray.llm._internal.serve.core.configs.openai_api_models import (
    OpenAIHTTPException as OpenAIHTTPException,
)
from ray.llm._internal.serve.core.ingress.ingress import DEFAULT_ENDPOINTS as DEFAULT_ENDPOINTS
from ray.llm._internal.serve.core.ingress.ingress import OpenAiIngress
from ray.llm._internal.serve.core.ingress.utils import _sanitize_chat_completion_request
from ray.llm._internal.serve.core.protocol import RawRequestInfo as RawRequestInfo
from ray.serve._private.http_util import session_id_from_headers as session_id_from_headers


class IngressBase(OpenAiIngress):  # type: ignore[misc]
    """Ray Serve LLM's OpenAI ingress, with the hooks that a subclass needs under public names.

    ``OpenAiIngress`` calls ``_process_llm_request(body, call_method, raw_request)`` for chat,
    completions and transcriptions, and finds models by ``_get_model_id(model)`` and
    ``_get_configured_serve_handle(model_id)``.
    """

    async def _process_llm_request(
        self, body: Any, call_method: str, raw_request: Any = None
    ) -> Any:
        return await self.process_request(body, call_method, raw_request)

    async def process_request(self, body: Any, call_method: str, raw_request: Any = None) -> Any:
        """Answer a request; ``call_method`` is the model's method for it."""
        raise NotImplementedError

    async def resolve_model(self, name: str | None) -> str:
        """Return the id of the model that a request names.

        Raises:
            OpenAIHTTPException: There is no such model.
        """
        return str(await self._get_model_id(name))

    def model_handle(self, model_id: str) -> Any:
        """Return a handle that streams the answers of a model."""
        return self._get_configured_serve_handle(model_id)


def sanitize_chat_request(body: Any) -> Any:
    """Return a chat request that can be pickled.

    Calls ``ray.llm._internal.serve.core.ingress.utils._sanitize_chat_completion_request()``.
    """
    return _sanitize_chat_completion_request(body)
