"""The number of users that a service holds within an SLO: they ask, read, think and ask again.

A user is a slot of a closed loop with think time. Each user thinks before every question, so that
a service that answers late also gets fewer questions, as with people. The search of
`workbench.experiments.search` raises the number of users.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from workbench.claims.claim import Claim, RunInfo, Verdict, evaluate_claim
from workbench.errors import SettingError
from workbench.experiments.probes import make_probe
from workbench.experiments.search import highest_load
from workbench.experiments.search_result import SearchResult
from workbench.workload.arrivals import ClosedLoop
from workbench.workload.spec import LoadSpec

if TYPE_CHECKING:
    import numpy as np

    from workbench.endpoints.remote import Remote
    from workbench.loadgen.progress import Progress
    from workbench.metrics.slo import SLO
    from workbench.runs.run import Run
    from workbench.workload.prompts import PromptSet

RATE_PER_WORKER = 100
"""Questions per second that one load worker sends."""
MIN_QUESTIONS = 4
"""Questions of a probe on average, even if each answer takes as long as the SLO allows."""


def users_load(
    users: int,
    *,
    prompts: PromptSet,
    think_s: float,
    duration_s: float,
    warmup_s: float = 0.0,
    timeout_s: float | None = 120.0,
    seed: int = 0,
) -> LoadSpec:
    """Return the load of `users` users who think `think_s` on average before each question.

    No user asks after `duration_s`. With few users the load lasts longer: long enough for four
    questions whose answers take half of `timeout_s` each (`request_timeout_s` is twice the SLO).
    There are enough questions for users who are answered at once.
    """
    if think_s <= 0:
        raise SettingError(f"think_s must be above 0 seconds, got {think_s!r}")
    slowest_s = MIN_QUESTIONS * (think_s + (timeout_s or 0.0) / 2) / users
    duration_s = max(duration_s, warmup_s + slowest_s)
    turns = getattr(prompts, "turns", 1)
    # With immediate answers, the number of questions is Poisson with this mean; add 4 deviations.
    mean = users * duration_s / think_s
    count = math.ceil((mean + 4 * math.sqrt(mean)) / turns) + users
    return LoadSpec(
        arrivals=ClosedLoop(max_concurrency=users, think_s=think_s),
        prompts=prompts,
        duration_s=duration_s,
        count=count,
        warmup_s=warmup_s,
        timeout_s=timeout_s,
        seed=seed,
        workers=max(1, math.ceil(users / think_s / RATE_PER_WORKER)),
    )


def request_timeout_s(slo: SLO, output_tokens: int) -> float:
    """Return twice the seconds that an answer of `output_tokens` may take within the SLO.

    A load with this timeout cuts off no good request, and does not wait for an overloaded service.
    Returns 120 if the SLO does not bound the whole answer.
    """
    bounds = slo.bounds()
    ends = [bounds[name] for name in ("e2el_ms", "e2el_from_schedule_ms") if name in bounds]
    if "ttft_ms" in bounds and "tpot_ms" in bounds:
        ends.append(bounds["ttft_ms"] + bounds["tpot_ms"] * (output_tokens - 1))
    return 2 * min(ends) / 1e3 if ends else 120.0


async def highest_users(
    target: Remote,
    load: Callable[[int, int], LoadSpec],
    slo: SLO,
    *,
    run: Run,
    low: int,
    high: int,
    start: int | None = None,
    tolerance: float = 0.1,
    confirmations: int = 1,
    progress: Progress | str | None = "lines",
) -> SearchResult:
    """Find the most users between `low` and `high` for whom `target` meets `slo`.

    `load` returns the load for a number of users and a seed. Every probe is a run in `run`. The
    other arguments are those of `workbench.experiments.search.highest_load`.
    """
    probe = make_probe(
        target,
        lambda users, before: load(int(users), before),
        slo,
        run=run,
        progress=progress,
    )
    return await highest_load(
        probe,
        low=low,
        high=high,
        start=start,
        tolerance=tolerance,
        confirmations=confirmations,
        integer=True,
        unit="users",
    )


def initial_load(results: Sequence[SearchResult], low: int, high: int) -> int:
    """Return where a search should start, given the results of its earlier repeats.

    The first repeat starts at the geometric middle, later ones at 0.7 of the last answer: if the
    answer has not changed, it is in the middle of the first doubling.
    """
    if not results:
        return round(math.sqrt(low * high))
    return max(low, int((results[-1].highest or 0) / math.sqrt(2)))


def users_verdicts(
    claim: Claim,
    results: Mapping[str, Sequence[SearchResult]],
    opponents: Sequence[str],
    *,
    where: RunInfo,
    rng: np.random.Generator,
) -> list[Verdict]:
    """Return the verdict against each of `opponents`, measured or not.

    A pair is the searches of one repeat. An opponent that misses the SLO with a single user counts
    as if it held one.

    Args:
        claim: The claim.
        results: The searches by engine, with the candidate first.
        opponents: The engines to compare it with.
        where: The run that measured.
        rng: Resamples the pairs.
    """
    candidate, *_ = results
    verdicts = []
    for name in opponents:
        searches = results.get(name, ())
        repeats = zip(results[candidate], searches, strict=False)  # a repeat cut short has no pair
        pairs = [(a.highest or 0.0, b.highest or _at_least(b)) for a, b in repeats]
        caveats = search_caveats(name, searches)
        caveats += search_caveats(candidate, results[candidate]) if searches else []
        # With these the measured ratio is a lower bound: if the claim holds with them, it holds.
        conservative = {_unbounded(candidate)}
        if all(b for _, b in pairs):
            conservative.add(_missed(name, searches))
        notes = [caveat for caveat in caveats if caveat in conservative]
        blocking = [caveat for caveat in caveats if caveat not in conservative]
        evaluate = partial(evaluate_claim, claim, name, pairs, where=where, rng=rng)
        verdict = evaluate(caveats=blocking, notes=notes)
        verdicts.append(verdict if verdict.verdict == "PASS" else evaluate(caveats=caveats))
    return verdicts


def _at_least(result: SearchResult) -> float:
    """Return 1 if the SLO was missed with a single user, else 0 (unknown)."""
    return 1.0 if min(probe.rate for probe in result.probes) == 1 else 0.0


def _unbounded(name: str) -> str:
    return f"{name} held the most users that were tried"


def _missed(name: str, results: Sequence[SearchResult]) -> str:
    missed = (result for result in results if result.highest is None)
    details = next((f" ({result.lowest_load_latencies()})" for result in missed), "")
    return f"{name} missed the SLO even with the fewest users that were tried{details}"


def search_caveats(name: str, results: Sequence[SearchResult]) -> list[str]:
    """Return the reasons why the searches of engine `name` decide nothing, for `evaluate_claim`."""
    caveats = []
    if not results:
        caveats.append(f"{name} was not measured")
    if any(result.client_limited for result in results):
        caveats.append(f"the client limited a deciding probe of {name}")
    if any(result.highest is not None and not result.bounded for result in results):
        caveats.append(_unbounded(name))
    if any(result.highest is None for result in results):
        caveats.append(_missed(name, results))
    return caveats
