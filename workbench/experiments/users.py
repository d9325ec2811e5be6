"""How many people a service carries: users who ask, read, think and ask again, within an SLO.

A user is a slot of a closed loop with think time: each thinks before every question, so that a
service which answers late also meets fewer questions, as with people. The number of users is what
the search of `workbench.experiments.search` raises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from workbench.claims.claim import Claim, Verdict, Where, evaluate_claim
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

PER_WORKER = 100
"""Questions a second that one load worker sends."""
FEWEST = 4
"""Questions of a probe, on average, though each is answered as late as the SLO allows."""


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
    """The load of so many users, each of whom thinks `think_s` on average before a question.

    None of them asks after `duration_s`, or after what a few users need for four questions whose
    answers take half of `timeout_s` each (`patience_s` is twice the SLO). There are questions
    enough for users who are answered at once, so that none runs out of them.
    """
    if think_s <= 0:
        raise SettingError(f"think_s is {think_s!r}: give the seconds that a user thinks")
    slowest_s = FEWEST * (think_s + (timeout_s or 0.0) / 2) / users
    duration_s = max(duration_s, warmup_s + slowest_s)
    turns = getattr(prompts, "turns", 1)
    # Poisson with this mean is the most that answers in no time allow; 4 deviations on top.
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
        workers=max(1, math.ceil(users / think_s / PER_WORKER)),
    )


def request_timeout_s(slo: SLO, output_tokens: int) -> float:
    """Seconds after which a question can no longer be answered within the SLO, twice over.

    A load that gives it up then cuts no good one, and an overloaded service is not waited for.
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
    """The most users between `low` and `high` for whom `target` meets `slo`.

    `load` makes the load of a number of users and a seed. Every probe is a run under `run`.
    The rest is as in `workbench.experiments.search.highest_load`.
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


def initial_load(found: Sequence[SearchResult], low: int, high: int) -> int:
    """Where a search may begin: the first in the middle (by ratio), others at 0.7 of the last.

    An answer that has not changed is then in the middle of the first doubling.
    """
    if not found:
        return round(math.sqrt(low * high))
    return max(low, int((found[-1].highest or 0) / math.sqrt(2)))


def users_verdicts(
    claim: Claim,
    found: Mapping[str, Sequence[SearchResult]],
    opponents: Sequence[str],
    *,
    where: Where,
    rng: np.random.Generator,
) -> list[Verdict]:
    """The verdict against each of `opponents`, measured or not: a pair is one repeat's searches.

    `found` has the searches by engine, ours first. An opponent that misses the SLO with a single
    user is counted as if it held one.
    """
    ours, *_ = found
    verdicts = []
    for name in opponents:
        theirs = found.get(name, ())
        each = zip(found[ours], theirs, strict=False)  # a repeat cut short has no pair
        pairs = [(a.highest or 0.0, b.highest or _least(b)) for a, b in each]
        doubts = doubts_of(name, theirs) + (doubts_of(ours, found[ours]) if theirs else [])
        # With these the ratio is only larger than measured: a claim that holds with them holds.
        lower = {_open(ours), *([_missed(name, theirs)] if all(b for _, b in pairs) else [])}
        notes = [one for one in doubts if one in lower]
        surer = [one for one in doubts if one not in lower]
        on = partial(evaluate_claim, claim, name, pairs, where=where, rng=rng)
        sure = on(doubts=surer, notes=notes)
        verdicts.append(sure if sure.verdict == "PASS" else on(doubts=doubts))
    return verdicts


def _least(found: SearchResult) -> float:
    """Where the SLO was missed even at the lowest: 1 where that was a single user, else unknown."""
    return 1.0 if min(probe.rate for probe in found.probes) == 1 else 0.0


def _open(name: str) -> str:
    return f"{name} held the most users that were tried"


def _missed(name: str, found: Sequence[SearchResult]) -> str:
    met = next((f" ({one.met_at_lowest()})" for one in found if one.highest is None), "")
    return f"{name} missed the SLO even with the fewest users that were tried{met}"


def doubts_of(name: str, found: Sequence[SearchResult]) -> list[str]:
    """Why searches of the engine `name` decide nothing, if so: each a reason for `judge`."""
    doubts = []
    if not found:
        doubts.append(f"{name} was not measured")
    if any(one.client_limited for one in found):
        doubts.append(f"the client limited a deciding probe of {name}")
    if any(one.highest is not None and not one.bounded for one in found):
        doubts.append(_open(name))
    if any(one.highest is None for one in found):
        doubts.append(_missed(name, found))
    return doubts
