"""Which client of a shared engine core gets the statistics of a step."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.metrics.stats import SchedulerStats

from serving.compat import vllm_scheduler
from serving.compat.vllm_scheduler import redirect_statistics

RUST, PYTHON = 0, 1


@pytest.mark.parametrize("clients", [[RUST], [PYTHON], [RUST, PYTHON], [PYTHON, RUST]])
def test_the_client_in_python_gets_them(clients: list[int]) -> None:
    stats = SchedulerStats(num_running_reqs=4)
    outputs = {client: EngineCoreOutputs(finished_requests={str(client)}) for client in clients}
    outputs[clients[0]].scheduler_stats = stats
    redirected = redirect_statistics(outputs)
    assert redirected[PYTHON].scheduler_stats is stats
    assert all(redirected[c].finished_requests == {str(c)} for c in clients)
    assert [c for c in redirected if redirected[c].scheduler_stats is not None] == [PYTHON]


def test_no_client_gets_an_empty_message() -> None:
    stats = SchedulerStats()
    redirected = redirect_statistics({RUST: EngineCoreOutputs(scheduler_stats=stats)})
    assert list(redirected) == [PYTHON]
    assert redirected[PYTHON].scheduler_stats is stats


def test_a_step_without_statistics_stays_as_it_is() -> None:
    outputs = {RUST: EngineCoreOutputs()}
    assert redirect_statistics(outputs) == {RUST: outputs[RUST]}
    assert outputs[RUST].scheduler_stats is None


@pytest.mark.parametrize(("asynchronous", "base"), [(True, AsyncScheduler), (False, Scheduler)])
def test_the_scheduler_is_otherwise_vllms(
    asynchronous: bool, base: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SimpleNamespace(async_scheduling=asynchronous, scheduler_cls=None)
    vllm_scheduler.report_to_python(config)
    chosen = config.scheduler_cls
    assert issubclass(chosen, base)
    assert issubclass(chosen, AsyncScheduler) == asynchronous
    stats = SchedulerStats()
    monkeypatch.setattr(
        base,
        "update_from_output",
        lambda self, scheduled, result: {RUST: EngineCoreOutputs(scheduler_stats=stats)},
    )
    outputs = chosen.update_from_output(object.__new__(chosen), None, None)
    assert outputs[PYTHON].scheduler_stats is stats
