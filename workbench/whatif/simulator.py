"""Simulate a service under a load."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from serving.spec.model import ModelSpec, capacity
from serving.spec.scaling import EnginePressure, ScalingSpec, TTFTTarget
from serving.spec.service import ServiceSpec
from workbench.errors import SettingError
from workbench.whatif.calibration import Calibration
from workbench.whatif.result import Simulation
from workbench.whatif.workload import Workload

if TYPE_CHECKING:
    from workbench.whatif.policies import Policy
    from workbench.whatif.state import Fleet, Gate, Model
    from workbench.whatif.tables import Control
    from workbench.workload.spec import LoadSpec
    from workbench.workload.tokenizer import Tokenizer
    from workbench.workload.trace_request import TraceRequest

UNFIT_CACHE = "do not fit the KV cache"
DRAWS = 1 << 16
DRAINING = 4
"""Slots per replica: a draining replica keeps its slot, and a new one takes another."""

ROUTINGS = {"round_robin": 0, "power_of_two": 1, "prefix_aware": 2}


def simulate(
    spec: ServiceSpec,
    load: LoadSpec | Workload | Iterable[TraceRequest],
    calibration: Calibration,
    *,
    seed: int = 0,
    token_times: bool = True,
    tokenizer: Tokenizer | None = None,
) -> Simulation:
    """Return what a service would do under a load.

    The replicas run as the calibration describes, and Ray Serve's autoscaling rules decide how many
    there are. The same arguments give the same result, to the byte.

    Args:
        spec: The service: its scaling, its routing and the limits of its engine.
        load: A load, the requests of a trace, or a `Workload`, which is prepared once for many
            simulations.
        calibration: The constants of a replica.
        seed: Seed of routing, of start times, and of the phases of the replicas' reports.
        token_times: Whether to keep the time of every token, which ITL needs.
        tokenizer: Counts the tokens of prompts from a file.

    Raises:
        SettingError: The load cannot be sent, or the setting cannot be simulated.
    """
    model = spec.model
    _check(model)
    length = model.max_model_len or calibration.max_model_len
    workload = Workload.of(load, max_model_len=length, tokenizer=tokenizer)
    limits = calibration.limits(model)
    room = limits.blocks * limits.block_size
    unfit = workload.prompt + workload.output > room
    if unfit.any():
        workload = workload.without(unfit, UNFIT_CACHE)
    return _simulated(spec, workload, calibration, limits, seed, token_times)


def _check(model: ModelSpec) -> None:
    if model.data_parallel_size > 1:
        raise SettingError(
            f"data_parallel_size must be 1 in a simulation, got {model.data_parallel_size}; "
            "replicas that share experts step together, which is not modelled"
        )


def _simulated(
    spec: ServiceSpec,
    workload: Workload,
    calibration: Calibration,
    limits: Model,
    seed: int,
    token_times: bool,
) -> Simulation:
    # numba is imported, and the functions are compiled, when they are first needed.
    from workbench.whatif._compiled import announce_compilation
    from workbench.whatif.control import run
    from workbench.whatif.state import RECENT_FIRSTS, empty_fleet

    rng = np.random.default_rng(seed)
    gate = _gate(spec)
    scaling = spec.model.scaling
    slots = _slots(scaling)
    tokens = int(workload.output.sum()) if token_times else 0
    fleet = empty_fleet(
        workload.table(),
        sessions=len(workload.sessions),
        token_times=np.zeros(tokens),
        draws=rng.random(DRAWS),
        slots=slots,
        seats=limits.max_seqs,
        groups=int(workload.group.max(initial=-1)) + 1,
        blocks=limits.blocks,
        firsts=RECENT_FIRSTS if isinstance(scaling.policy, TTFTTarget) else 0,
    )
    control = _control(scaling, calibration, workload, slots, rng)
    announce_compilation(run)
    _begin(fleet, control, gate, scaling, rng)
    while not run(limits, gate, fleet, control):
        control = _with_more_room(control)
    return Simulation.of(spec, workload, calibration, fleet, control)


def _slots(scaling: ScalingSpec) -> int:
    return scaling.max_replicas * (1 if _is_fixed(scaling) else DRAINING)


def _is_fixed(scaling: ScalingSpec) -> bool:
    return scaling.min_replicas == scaling.max_replicas


def _gate(spec: ServiceSpec) -> Gate:
    from workbench.whatif.state import Gate

    scaling = spec.model.scaling
    if spec.model.disaggregated:
        raise SettingError(
            "model.disaggregated must be left out in a simulation, whose replicas read prompts "
            "and generate"
        )
    if spec.model.routing not in (None, *ROUTINGS):
        raise SettingError(
            f"model.routing must be one of {', '.join(ROUTINGS)} in a simulation, got "
            f"{spec.model.routing!r}; choose one of them"
        )
    routing = spec.model.routing or ("power_of_two" if spec.composed else "round_robin")
    return Gate(
        composed=int(spec.composed),
        max_ongoing=scaling.max_ongoing_requests,
        max_queued=scaling.max_queued_requests,
        capacity=capacity(spec.model),
        routing=ROUTINGS[routing],
    )


def _policy(scaling: ScalingSpec) -> Policy:
    from workbench.whatif import policies

    policy, target = scaling.policy, scaling.target_ongoing_requests
    if isinstance(policy, EnginePressure):
        usage, waiting = policy.kv_cache_usage, policy.waiting_requests
        return policies.Policy(policies.ENGINE_PRESSURE, target, usage, waiting, 0.0, 0.0, 0.0)
    if isinstance(policy, TTFTTarget):
        ttft_s, share = policy.ttft_ms / 1e3, policy.percentile / 100
        kind = policies.TTFT_TARGET
        return policies.Policy(kind, target, 0.0, 0.0, ttft_s, share, policy.slack)
    return policies.Policy(policies.REQUESTS, target, 0.0, 0.0, 0.0, 0.0, 0.0)


def _control(
    scaling: ScalingSpec,
    calibration: Calibration,
    workload: Workload,
    slots: int,
    rng: np.random.Generator,
) -> Control:
    from workbench.whatif.autoscaler import Bounds
    from workbench.whatif.policies import FIGURES
    from workbench.whatif.reports import RECORD_FACTOR, empty_series, points_needed
    from workbench.whatif.tables import Control

    record_s = min(RECORD_FACTOR * scaling.look_back_period_s, scaling.metrics_interval_s)
    to_zero_s = scaling.downscale_to_zero_delay_s
    points = points_needed(scaling.look_back_period_s, record_s)
    due_s = workload.due_s[np.isfinite(workload.due_s)]
    horizon_s = float(workload.duration_s or due_s.max(initial=0.0))
    samples = math.ceil(horizon_s) + 3600
    return Control(
        bounds=Bounds(
            scaling.min_replicas,
            scaling.max_replicas,
            scaling.upscale_delay_s,
            scaling.downscale_delay_s,
            scaling.downscale_delay_s if to_zero_s is None else to_zero_s,
        ),
        policy=_policy(scaling),
        record_s=record_s,
        report_s=scaling.metrics_interval_s,
        look_back_s=scaling.look_back_period_s,
        horizon_s=horizon_s,
        ongoing=empty_series(slots + 1, points),
        figures=empty_series(slots * FIGURES, points),
        due_s=np.full((slots + 1, 2), np.inf),
        delays=np.zeros(2),
        clock=np.array([0.0, 0.0, 0.0, 0.0, np.inf, 0.0, 0.0, 1.0]),
        total=np.zeros(4),
        rows=np.zeros(slots + 1, np.int64),
        start_s=rng.choice(np.array(calibration.start_s or (0.0,)), 1 << 10),
        stop_s=rng.choice(np.array(calibration.stop_s or (0.0,)), 1 << 10),
        samples=np.zeros((samples, 9)),
        decisions=np.zeros((1 << 10, 6)),
        replicas=np.zeros((scaling.max_replicas + (1 << 10), 5)),
        sizes=np.zeros(3, np.int64),
    )


def _begin(
    fleet: Fleet, control: Control, gate: Gate, scaling: ScalingSpec, rng: np.random.Generator
) -> None:
    """Start the first replicas, which run at time 0 and have reported that nothing was to do."""
    from workbench.whatif.lifecycle import begin_start, start_serving
    from workbench.whatif.state import TARGET
    from workbench.whatif.tables import NEXT_REPORT_S

    first = scaling.initial_replicas
    fleet.counts[TARGET] = scaling.min_replicas if first is None else first
    handle = len(fleet.replicas)
    sources = []
    for _ in range(int(fleet.counts[TARGET])):
        slot = begin_start(fleet, control, 0.0)
        fleet.replicas["ready_s"][slot] = 0.0
        start_serving(fleet, control, slot, 0.0)
        sources.append(slot)
    if _is_fixed(scaling):
        return
    for source in [handle] if gate.composed else sources:
        _report_idle(control, source, rng.uniform(0, control.record_s))
    for source in sources if gate.composed else []:
        control.due_s[source] = rng.uniform(0, control.record_s)
    control.clock[NEXT_REPORT_S] = control.due_s.min()


def _report_idle(control: Control, source: int, phase_s: float) -> None:
    from workbench.whatif.reports import record, report

    points = math.floor(control.look_back_s / control.record_s)
    for point in range(points, 0, -1):
        at_s = phase_s - point * control.record_s
        record(control.ongoing, source, at_s, 0.0, control.look_back_s)
    report(control.ongoing, source, phase_s - control.record_s, control.look_back_s)
    control.due_s[source] = phase_s


def _with_more_room(control: Control) -> Control:
    """Return the control with tables of twice the size."""
    tables = {name: getattr(control, name) for name in ("samples", "decisions", "replicas")}
    return control._replace(
        **{name: np.concatenate([table, np.zeros_like(table)]) for name, table in tables.items()}
    )
