"""Read the `/metrics` of an endpoint that this process did not deploy."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from workbench.endpoints.failures import explain_failure
from workbench.telemetry.engines import engine_samples

if TYPE_CHECKING:
    import httpx2

    from workbench.endpoints.remote import Remote
    from workbench.records import Sample

TIMEOUT_S = 2.0


class RemoteMetrics:
    """The `/metrics` next to an endpoint's `/v1`, read with the endpoint's own connection.

    `seen` is whether it was ever read, and `failure` why the last attempt failed.
    """

    def __init__(self, endpoint: Remote) -> None:
        self._connection = endpoint.connection
        self._name = endpoint.deployments[0]
        self.url = f"{endpoint.base_url.removesuffix('/v1')}/metrics"
        self.seen = False
        self.failure = ""
        self._client: httpx2.AsyncClient | None = None

    async def __aenter__(self) -> RemoteMetrics:
        import httpx2

        options = self._connection.client_options()
        self._client = httpx2.AsyncClient(**options, timeout=TIMEOUT_S)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._client is not None
        await self._client.aclose()

    async def samples(self, clock: Callable[[], float]) -> list[Sample]:
        """Return the samples of this moment; none if the metrics cannot be read."""
        import httpx2

        assert self._client is not None
        try:
            answer = await self._client.get(self.url, headers=self._connection.request_headers())
            answer.raise_for_status()
            samples = engine_samples(clock(), self._name, answer.content)
        except httpx2.HTTPStatusError as problem:
            self.failure = f"HTTP {problem.response.status_code}"
        except (httpx2.HTTPError, ValueError) as problem:
            reason = explain_failure(problem, self._connection.proxy_name)
            self.failure = reason or type(problem).__name__
        else:
            self.seen = self.seen or bool(samples)
            self.failure = "" if samples else "none is known"
            return samples
        return []
