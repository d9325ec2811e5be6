"""Run several loads and combine them into one result."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench._lazy import lazy_names

if TYPE_CHECKING:
    from workbench.experiments.disaggregation import DisaggregationTrial as DisaggregationTrial
    from workbench.experiments.disaggregation import kv_transfers as kv_transfers
    from workbench.experiments.fleets import cost_ratios as cost_ratios
    from workbench.experiments.fleets import fleet_caveats as fleet_caveats
    from workbench.experiments.fleets import fleet_frame as fleet_frame
    from workbench.experiments.fleets import max_savings_note as max_savings_note
    from workbench.experiments.fleets import run_days as run_days
    from workbench.experiments.mlperf import mlperf_load as mlperf_load
    from workbench.experiments.mlperf import mlperf_slo as mlperf_slo
    from workbench.experiments.pacing import paced as paced
    from workbench.experiments.paired import measurements_frame as measurements_frame
    from workbench.experiments.paired_runner import compare_with_baseline as compare_with_baseline
    from workbench.experiments.paired_runner import load_from_trace as load_from_trace
    from workbench.experiments.paired_runner import run_alternating as run_alternating
    from workbench.experiments.paired_runner import run_single as run_single
    from workbench.experiments.phases import Phase as Phase
    from workbench.experiments.phases import read_phases as read_phases
    from workbench.experiments.phases import run_phases as run_phases
    from workbench.experiments.probes import make_probe as make_probe
    from workbench.experiments.probes import measure_curve as measure_curve
    from workbench.experiments.scaling_phases import autoscaling_phases as autoscaling_phases
    from workbench.experiments.search import highest_load as highest_load
    from workbench.experiments.users import highest_users as highest_users
    from workbench.experiments.users import initial_load as initial_load
    from workbench.experiments.users import request_timeout_s as request_timeout_s
    from workbench.experiments.users import users_load as users_load
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
