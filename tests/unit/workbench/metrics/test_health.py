"""The verdict on the client: one measurement against its bounds, and several combined."""

from __future__ import annotations

import asyncio
import time

from workbench.metrics.health import ClientHealth, HealthBounds, LoopWatch

OK = ClientHealth.judge(cpu_share=0.5, send_lag_p99_ms=1)
LIMITED = ClientHealth.judge(cpu_share=0.97, send_lag_p99_ms=0.5)


class TestJudge:
    def test_verdicts(self) -> None:
        assert ClientHealth.judge().verdict == "not measured"
        assert ClientHealth.judge(cpu_share=0.5, send_lag_p99_ms=None).verdict == "ok"
        assert LIMITED.verdict == "client limited"
        assert LIMITED.reasons == ("cpu_share 0.97 exceeds 0.9",)

    def test_other_bounds(self) -> None:
        strict = HealthBounds(send_lag_p99_ms=0.5)
        assert ClientHealth.judge(strict, send_lag_p99_ms=1).client_limited


class TestCombine:
    def test_one_limited_run_limits_all(self) -> None:
        both = ClientHealth.combine([OK, LIMITED, LIMITED])
        assert both.client_limited is True
        assert both.reasons == LIMITED.reasons
        assert (both.cpu_share, both.send_lag_p99_ms, both.loop_lag_p99_ms) == (0.97, 1, None)

    def test_ok_and_not_measured(self) -> None:
        assert ClientHealth.combine([OK, ClientHealth()]).client_limited is False
        assert ClientHealth.combine([ClientHealth()]).client_limited is None
        assert ClientHealth.combine([]).client_limited is None

    def test_a_measured_zero_is_a_value(self) -> None:
        assert ClientHealth.combine([ClientHealth.judge(cpu_share=0.0)]).cpu_share == 0.0

    def test_labels_say_which_run(self) -> None:
        both = ClientHealth.combine([LIMITED.labelled("r1"), LIMITED.labelled("r2")])
        assert both.reasons == (f"r1: {LIMITED.reasons[0]}", f"r2: {LIMITED.reasons[0]}")
        assert OK.labelled("r3") == OK


async def watched(interval_s: float, blocked_s: float) -> LoopWatch:
    async with LoopWatch(interval_s) as watch:
        await asyncio.sleep(0.02)
        time.sleep(blocked_s)
        await asyncio.sleep(0.02)
    return watch


def test_loop_watch_reports_lag_and_cpu_share() -> None:
    watch = asyncio.run(watched(0.05, blocked_s=0.2))
    assert watch.loop_lag_p99_ms is not None
    assert watch.loop_lag_p99_ms > 100
    assert watch.cpu_share is not None


def test_loop_watch_without_a_timer_reports_no_lag() -> None:
    assert asyncio.run(watched(60, blocked_s=0)).loop_lag_p99_ms is None
