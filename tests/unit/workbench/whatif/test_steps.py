"""The steps of a replica and the queues before it, against cases that were computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from support.whatif import calibration, requests, service

import workbench as wb
from workbench.whatif.simulator import simulate


def times(simulation: wb.whatif.Simulation) -> list[tuple[float, float]]:
    """The first token and the end of each request."""
    frame = simulation.requests_frame()
    return list(zip(frame.first_token_s.round(9), frame.end_s.round(9), strict=True))


def test_two_requests_on_one_slot_follow_each_other() -> None:
    # Each needs three steps of a second: one reads the prompt, two generate.
    load = requests((0.0, 8, 3), (0.5, 8, 3))
    one = service(max_ongoing_requests=1, target_ongoing_requests=1)
    assert times(simulate(one, load, calibration())) == [(1, 3), (4, 6)]


def test_two_requests_in_one_batch_share_the_steps() -> None:
    # The second waits for the end of the step in which it arrives.
    load = requests((0.0, 8, 3), (0.5, 8, 3))
    assert times(simulate(service(), load, calibration())) == [(1, 3), (2, 4)]


def test_a_step_takes_the_time_of_the_formula() -> None:
    given = calibration(
        step_s=1, prefill_token_s=0.1, running_s=0.01, kv_token_s=0.001, request_s=0.5, token_s=0.2
    )
    # Reads 10 tokens, then generates with 10 and 11 tokens in the cache.
    first = 0.5 + (1 + 10 * 0.1 + 0.01) + 0.2
    end = first + (1 + 0.01 + 10 * 0.001) + (1 + 0.01 + 11 * 0.001)
    simulation = simulate(service(), requests((0.0, 10, 3)), given)
    (found,) = times(simulation)
    assert found == pytest.approx((first, end))


def test_a_long_prompt_is_read_in_parts_while_another_request_generates() -> None:
    # 8 tokens per step: the second request's 22 tokens take 7, 7, 7 and 1 beside the first's token.
    load = requests((0.0, 8, 6), (0.5, 22, 1))
    simulation = simulate(service(engine={"max_num_batched_tokens": 8}), load, calibration())
    assert times(simulation) == [(1, 6), (5, 5)]
    tokens = [record.token_times_s for record in simulation.records()]
    assert tokens == [(1, 2, 3, 4, 5, 6), (5,)]


def test_a_batch_takes_no_more_requests_than_max_num_seqs() -> None:
    load = requests((0.0, 4, 2), (0.0, 4, 2), (0.0, 4, 2))
    simulation = simulate(service(engine={"max_num_seqs": 2}), load, calibration())
    assert times(simulation) == [(1, 2), (1, 2), (3, 4)]


def test_a_preempted_request_is_read_again() -> None:
    # 4 blocks of 4 tokens. After the first step both hold 2 blocks with 8 tokens, and the cache is
    # full. In the second the older one needs a third block, so the newer one loses its own two. It
    # is admitted when its 9 tokens fit, after the end of the other, is read in one step, and
    # generates 3 more. A step takes a second and 0.01 s per token in the cache before it.
    load = requests((0.0, 8, 5), (0.0, 8, 5))
    given = calibration(kv_blocks=4, block_size=4, kv_token_s=0.01)
    simulation = simulate(service(), load, given)
    assert simulation.preemptions == 1
    older, newer = (record.token_times_s for record in simulation.records())
    assert older == pytest.approx((1, 2.08, 3.17, 4.27, 5.38))
    assert newer == pytest.approx((1, 6.38, 7.47, 8.57, 9.68))


def test_a_prompt_waits_until_the_cache_has_room_for_all_of_it() -> None:
    # 4 blocks of 4 tokens: the second needs 3 while the first holds 2.
    load = requests((0.0, 8, 1), (0.0, 12, 1))
    given = calibration(kv_blocks=4, block_size=4)
    assert times(simulate(service(), load, given)) == [(1, 1), (2, 2)]


def test_the_gate_queues_and_sheds() -> None:
    load = requests(*[(0.1 * number, 4, 2) for number in range(5)])
    limits = service(max_ongoing_requests=1, max_queued_requests=2, target_ongoing_requests=1)
    frame = simulate(limits, load, calibration()).requests_frame()
    assert frame.status.tolist() == ["ok", "ok", "ok", "shed", "shed"]
    assert frame.end_s[:3].tolist() == pytest.approx([2, 4, 6])
    assert frame.end_s[3:].tolist() == pytest.approx([0.3, 0.4])


def test_round_robin_alternates() -> None:
    load = requests(*[(0.1 * number, 4, 2) for number in range(6)])
    frame = simulate(
        service(min_replicas=3, max_replicas=3, routing="round_robin"), load, calibration()
    ).requests_frame()
    assert frame.replica.tolist() == frame.replica.tolist()[:3] * 2
    assert len(set(frame.replica)) == 3


def test_power_of_two_prefers_the_less_busy_of_two_replicas() -> None:
    # With two replicas both are asked, so requests that never end alternate between them.
    load = requests(*[(0.1 * number, 4, 100) for number in range(6)])
    spec = service(min_replicas=2, max_replicas=2, routing="power_of_two")
    counts = simulate(spec, load, calibration()).requests_frame().replica.value_counts()
    assert counts.tolist() == [3, 3]


def test_a_shared_prefix_is_read_once() -> None:
    load = requests((0.0, 32, 1), (10.0, 32, 1))
    load.group[:], load.prefix[:] = 0, 32
    given = calibration(step_s=0.001, prefill_token_s=0.1, block_size=8)
    took = simulate(service(), load, given).requests_frame().ttft_ms
    # Of the second prompt 24 tokens are found: whole blocks, and never all of it.
    assert took.tolist() == pytest.approx([3201, 801])


def test_users_of_a_closed_loop_send_when_they_have_an_answer() -> None:
    load = wb.LoadSpec(
        arrivals=wb.ClosedLoop(max_concurrency=2),
        prompts=wb.RandomPrompts(input=8, output=4),
        count=6,
    )
    frame = simulate(service(), load, calibration()).requests_frame()
    assert sorted(frame.sent_s) == pytest.approx([0, 0, 4, 4, 8, 8])
    assert frame.end_s.max() == pytest.approx(12)


def test_a_turn_follows_the_answer_before_it() -> None:
    prompts = wb.Conversations(turns=3, input=8, output=2)
    load = wb.LoadSpec(arrivals=wb.Constant(rate=1), prompts=prompts, count=1)
    frame = simulate(service(), load, calibration()).requests_frame()
    assert frame.sent_s.tolist() == pytest.approx([0, 2, 4])
    assert frame.prompt_tokens.tolist() == [8, 18, 28]


def test_many_short_steps_take_the_time_of_single_ones() -> None:
    """Steps that are planned together end when steps that are simulated one by one would."""
    given = calibration(step_s=0.01, running_s=0.003, kv_token_s=1e-5, prefill_token_s=1e-4)
    rng = np.random.default_rng(3)
    rows = [
        (float(at_s), int(prompt), int(output))
        for at_s, prompt, output in zip(
            rng.uniform(0, 5, 40), rng.integers(1, 60, 40), rng.integers(1, 60, 40), strict=True
        )
    ]
    records = list(simulate(service(), requests(*rows), given).records())
    ends = one_by_one(sorted(rows), given)
    assert [record.end_s for record in records] == pytest.approx(ends)


def one_by_one(rows: list[tuple[float, int, int]], given: wb.whatif.Calibration) -> list[float]:
    """The ends of requests on one replica without limits, with a loop over single steps."""
    now, ends = 0.0, [0.0] * len(rows)
    waiting, running = list(range(len(rows))), dict[int, int]()
    while waiting or running:
        new = [number for number in waiting if rows[number][0] <= now]
        waiting = [number for number in waiting if number not in new]
        if not new and not running:
            now = rows[waiting[0]][0]
            continue
        cached = sum(rows[number][1] + tokens - 1 for number, tokens in running.items())
        now += given.step_s + given.kv_token_s * cached
        now += given.prefill_token_s * sum(rows[number][1] for number in new)
        now += given.running_s * (len(running) + len(new))
        running = {number: tokens + 1 for number, tokens in running.items()}
        running |= dict.fromkeys(new, 1)
        for number in [number for number, tokens in running.items() if tokens == rows[number][2]]:
            ends[number] = now
            del running[number]
    return ends
