"""Private API of Ray Serve LLM's registry of KV connectors, checked against Ray 2.60.0.

Importing this module imports neither Ray nor vLLM.
"""

from __future__ import annotations

REGISTERED = "is already registered"
"""In the error of ``ray.llm._internal.serve.utils.registry.ComponentRegistry.register()``."""

ATTEMPTS = 20
"""More than the connectors of Ray, each of which can fail one attempt."""


def register_kv_connectors() -> None:
    """Register Ray's KV connectors on the connected cluster, whatever other processes do.

    ``ray.llm._internal.serve.engines.vllm.kv_transfer.factory`` registers them in the cluster's
    key-value store when it is imported. It checks whether the store has a connector, and
    ``register()`` checks again and raises ValueError. If another process registers the connector
    between both checks, the import fails. The next attempt finds that connector in the store and
    goes on with the others, so importing the module again always succeeds in the end.

    Call this before anything else imports ``ray.serve.llm``.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            import ray.llm._internal.serve.engines.vllm.kv_transfer.factory  # noqa: F401
        except ValueError as error:
            if REGISTERED not in str(error) or attempt == ATTEMPTS:
                raise
        else:
            return
