"""Checks of an engine, on a client that records its calls."""

from __future__ import annotations

import asyncio

import pytest

from serving.engine.health import EngineHealth


class Client:
    """An engine's client. Calls of methods in `stuck` never return; `error` is raised by all."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.stuck: set[str] = set()
        self.error: Exception | None = None

    async def is_sleeping(self) -> bool:
        await self._called("core")
        return False

    async def collective_rpc(self, method: str) -> None:
        assert method == "check_health"
        await self._called("workers")

    async def _called(self, name: str) -> None:
        self.calls.append(name)
        if self.error:
            raise self.error
        if name in self.stuck:
            await asyncio.Event().wait()


def health_of(client: Client, times: list[float]) -> EngineHealth:
    return EngineHealth(client, lambda: times[0])


def test_workers_are_checked_at_first_and_then_once_a_minute() -> None:
    client, times = Client(), [100.0]
    health = health_of(client, times)

    async def go() -> None:
        for times[0] in (100.0, 105.0, 159.0, 160.0, 165.0):
            await health.check()

    asyncio.run(go())
    assert client.calls == ["core", "workers", "core", "core", "core", "workers", "core"]


@pytest.mark.parametrize("stuck", ["core", "workers"])
def test_a_process_that_does_not_answer_is_asked_once(stuck: str) -> None:
    client, times = Client(), [0.0]
    client.stuck = {stuck}
    health = health_of(client, times)

    async def go() -> None:
        for times[0] in (0.0, 70.0, 140.0):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(health.check(), 0.01)

    asyncio.run(go())
    assert client.calls.count(stuck) == 1


def test_the_error_of_an_engine_is_raised_by_each_check() -> None:
    client, times = Client(), [0.0]
    client.error = RuntimeError("the engine has failed")
    health = health_of(client, times)

    async def go() -> None:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="has failed"):
                await health.check()

    asyncio.run(go())
    assert client.calls == ["core", "core"]
