"""The check of a body before it wakes a model: the one that vLLM makes when the model runs."""

from __future__ import annotations

import asyncio
import copy
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from pydantic import TypeAdapter, ValidationError

from serving.compat.vllm import REQUEST_CLASSES, error_fields, request_class
from serving.engine.http_app import INVALID_PARAMETER, describe_problem, without_value
from serving.gateway.bodies.fields import Kind
from serving.guardrail.guard import RefusedError

Adapters = dict[str, TypeAdapter[Any]]


class RequestValidator:
    """Validates bodies with vLLM's own classes.

    A request that vLLM would reject must not start a replica. Importing the classes takes some
    seconds and half a gigabyte, so that only an ingress in front of models that may sleep does it,
    in a thread.
    """

    def __init__(self) -> None:
        self._adapters: Future[Adapters] | None = None

    def start(self) -> None:
        """Begin to import the classes."""
        if self._adapters is None:
            self._adapters = ThreadPoolExecutor(1).submit(_load)

    async def check(self, kind: Kind, fields: dict[str, Any]) -> None:
        """Check a body.

        Raises:
            RefusedError: 400, vLLM would reject it.
        """
        self.start()
        assert self._adapters is not None
        adapters = await asyncio.wrap_future(self._adapters)
        try:
            # vLLM's validators change what they are given. FastAPI validates with this option too,
            # which is in some messages.
            adapters[kind].validate_python(copy.deepcopy(fields), from_attributes=True)
        except ValidationError as error:
            problem: dict[str, Any] = dict(error.errors()[0])
            problem["loc"] = ("body", *problem["loc"])
            message, field = describe_problem(problem, fields)
            raise RefusedError(message, INVALID_PARAMETER, param=field) from None
        except Exception as error:  # vLLM's own, and what its validators do not expect.
            raise _refusal(error) from None


def _refusal(error: Exception) -> RefusedError:
    """Return the answer of vLLM's own server to an exception of a validator."""
    fields = error_fields(error)
    message = without_value(fields["message"])
    status = int(fields["code"])
    return RefusedError(message, status, status, param=fields["param"], kind=fields["type"])


def _load() -> Adapters:
    return {kind: TypeAdapter(request_class(kind)) for kind in REQUEST_CLASSES}
