"""Simulated requests and samples in the forms of a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.records import DeploymentSample, RequestRecord, Status

if TYPE_CHECKING:
    from workbench.whatif.calibration import Calibration
    from workbench.whatif.state import Floats, Ints


def status_of(code: int) -> Status:
    """Return how a simulated request ended."""
    return "ok" if code == 1 else "shed"


def replica_names(deployment: str) -> Any:
    """Return a function from the number of a replica to its name."""
    return lambda number: None if number < 0 else f"{deployment}#{number}"


def request_record(
    requests: Any, token_times: Floats, number: int, model: str, names: Any
) -> RequestRecord:
    """Return a simulated request as the record of a run."""
    ok = requests["status"][number] == 1
    times: tuple[float, ...] = ()
    if ok and len(token_times):
        start = requests["token_at"][number]
        times = tuple(token_times[start : start + requests["output"][number]].tolist())
    return RequestRecord(
        request_id=f"{number:032x}",
        scheduled_s=float(requests["due_s"][number]),
        sent_s=float(requests["sent_s"][number]),
        first_token_s=float(requests["first_s"][number]) if ok else None,
        end_s=float(requests["end_s"][number]),
        token_times_s=times,
        prompt_tokens=int(requests["prompt"][number]) if ok else None,
        output_tokens=int(requests["output"][number]) if ok else None,
        status=status_of(requests["status"][number]),
        error=None if ok else "shed with HTTP 429",
        model=model,
        tenant=None,
        replica=names(requests["replica"][number]),
    )


def token_gaps(requests: Any, token_times: Floats, ok: Ints) -> tuple[Floats, Ints]:
    """Return the gaps between the tokens of completed requests, and their number per request."""
    counts = np.where(ok, requests["output"] - 1, 0).astype(np.int32)
    if not len(token_times):
        return np.zeros(0), np.zeros(len(counts), np.int32)
    gaps = np.diff(token_times)
    last = (requests["token_at"] + requests["output"] - 1)[:-1]
    kept = np.repeat(ok, requests["output"])[:-1]
    kept[last] = False
    return gaps[kept], counts


def beyond_range(calibration: Calibration, requests: Any) -> list[str]:
    """Return which lengths and batches are outside the calibrated range."""
    ok = requests["status"] == 1
    if not ok.any():
        return []
    return calibration.beyond(
        prompt_tokens=(requests["prompt"][ok].min(), requests["prompt"][ok].max()),
        output_tokens=(requests["output"][ok].min(), requests["output"][ok].max()),
        running=(0, _largest_batch(requests[ok])),
    )


def _largest_batch(requests: Any) -> int:
    """Return how many requests a replica generated for at once, at most."""
    at_s = np.concatenate([requests["first_s"], requests["end_s"]])
    change = np.repeat([1, -1], len(requests))
    order = np.lexsort((change, at_s, np.tile(requests["replica"], 2)))
    return int(np.cumsum(change[order]).max())


def deployment_samples(rows: Floats, deployment: str) -> Iterator[DeploymentSample]:
    """Yield the rows of the simulator's table of samples as the samples of a run."""
    for now, target, running, starting, stopping, desired, total, queued, shed in rows:
        yield DeploymentSample(
            time_s=float(now),
            deployment=deployment,
            target=int(target),
            running=int(running),
            starting=int(starting),
            stopping=int(stopping),
            desired=int(np.ceil(desired - 1e-9)),
            total_requests=float(total),
            queued_requests=float(queued),
            shed=int(shed),
        )
