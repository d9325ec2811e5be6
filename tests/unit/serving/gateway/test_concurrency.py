"""The limiter in any order of events. Ground truth: a model of plain tuples."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.gateway.concurrency import ConcurrencyLimiter, FullError


@dataclass(frozen=True)
class Model:
    """A model of `ConcurrencyLimiter`: who runs and who waits, in order of arrival."""

    running: tuple[int, ...] = ()
    waiting: tuple[int, ...] = ()
    refused: tuple[int, ...] = ()
    limit: int = 1

    def arrive(self, who: int, queue: int) -> Model:
        if len(self.running) < self.limit and not self.waiting:
            return replace(self, running=self.running + (who,))
        if len(self.waiting) < queue:
            return replace(self, waiting=self.waiting + (who,))
        return replace(self, refused=self.refused + (who,))

    def leave(self, who: int) -> Model:
        left = replace(
            self,
            running=tuple(r for r in self.running if r != who),
            waiting=tuple(w for w in self.waiting if w != who),
        )
        return left.fill()

    def limited(self, limit: int) -> Model:
        return replace(self, limit=limit).fill()

    def fill(self) -> Model:
        free = max(0, self.limit - len(self.running))
        return replace(
            self, running=self.running + self.waiting[:free], waiting=self.waiting[free:]
        )


STEPS = st.lists(
    st.tuples(st.sampled_from(["arrive", "finish", "cancel", "limit"]), st.integers(0, 9)),
    max_size=40,
)


@pytest.mark.slow
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS, limit=st.integers(1, 4), queue=st.integers(0, 4))
def test_the_limiter_agrees_with_the_model_in_any_order(
    steps: list[tuple[str, int]], limit: int, queue: int
) -> None:
    asyncio.run(_run_steps(steps, limit, queue))


async def _run_steps(steps: list[tuple[str, int]], limit: int, queue: int) -> None:
    """Execute the steps one by one, and compare with the model after each."""
    slots, model = ConcurrencyLimiter(), Model(limit=limit)
    running: set[int] = set()
    refused: list[int] = []
    done: dict[int, asyncio.Event] = {}
    tasks: dict[int, asyncio.Task[None]] = {}

    async def request(who: int) -> None:
        try:
            async with slots.hold(limit, queue):
                running.add(who)
                try:
                    await done[who].wait()
                finally:
                    running.remove(who)
        except FullError:
            refused.append(who)

    def arrive(who: int) -> None:
        done[who] = asyncio.Event()
        tasks[who] = asyncio.create_task(request(who))

    for number, (step, pick) in enumerate(steps):
        present = model.running + model.waiting
        if step == "limit":
            # A changed limit reaches the limiter with the next request.
            limit = 1 + pick % 4
            model = model.limited(limit)
        if step in ("arrive", "limit"):
            arrive(number)
            model = model.arrive(number, queue)
        elif step == "finish" and model.running:
            who = model.running[pick % len(model.running)]
            done[who].set()
            model = model.leave(who)
        elif step == "cancel" and present:
            who = present[pick % len(present)]
            tasks[who].cancel()
            model = model.leave(who)
        await settle()
        assert running == set(model.running), "not first come, first served"
        assert refused == list(model.refused)
        assert (slots.running, slots.queued) == (len(running), len(model.waiting))
    await drain(slots, done, tasks)


async def settle() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


async def drain(
    slots: ConcurrencyLimiter, done: dict[int, asyncio.Event], tasks: dict[int, asyncio.Task[None]]
) -> None:
    """End all requests, and check that no slot is lost."""
    for event in done.values():
        event.set()
    for _ in tasks:
        await settle()
    assert all(task.done() for task in tasks.values()), "a request waits for a lost slot"
    ends = await asyncio.gather(*tasks.values(), return_exceptions=True)
    assert all(end is None or isinstance(end, asyncio.CancelledError) for end in ends), ends
    assert (slots.running, slots.queued) == (0, 0)


@pytest.mark.slow
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    turns=st.lists(
        st.lists(st.tuples(st.sampled_from(["finish", "cancel"]), st.integers(0, 11)), max_size=6),
        max_size=6,
    ),
    limit=st.integers(1, 4),
)
def test_events_in_the_same_loop_iteration_lose_no_slot(
    turns: list[list[tuple[str, int]]], limit: int
) -> None:
    """Several ends and cancellations before the event loop runs once, while slots are handed on."""

    async def scenario() -> None:
        slots, done = ConcurrencyLimiter(), {who: asyncio.Event() for who in range(12)}
        peak = 0

        async def request(who: int) -> None:
            nonlocal peak
            async with slots.hold(limit, 12):
                peak = max(peak, slots.running)
                assert slots.running <= limit
                await done[who].wait()

        tasks = {who: asyncio.create_task(request(who)) for who in done}
        await settle()
        for steps in turns:
            for step, who in steps:
                if step == "finish":
                    done[who].set()
                else:
                    tasks[who].cancel()
            await asyncio.sleep(0)
        await drain(slots, done, tasks)
        assert peak == limit

    asyncio.run(scenario())
