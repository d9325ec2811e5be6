"""Simulate a service: what other settings, loads and prices would do, without a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench._lazy import lazy_names

if TYPE_CHECKING:
    from workbench.dashboard.exploration import explore as explore
    from workbench.whatif.calibration import Calibration as Calibration
    from workbench.whatif.comparison import ScalingComparison as ScalingComparison
    from workbench.whatif.comparison import compare_requests as compare_requests
    from workbench.whatif.comparison import compare_scaling as compare_scaling
    from workbench.whatif.fitting import calibrate as calibrate
    from workbench.whatif.loads import calibration_loads as calibration_loads
    from workbench.whatif.result import Simulation as Simulation
    from workbench.whatif.simulator import simulate as simulate
    from workbench.whatif.stored import load_calibration as load_calibration
    from workbench.whatif.stored import stored_calibrations as stored_calibrations
    from workbench.whatif.sweeps import sweep as sweep
    from workbench.whatif.sweeps import with_scaling as with_scaling
    from workbench.whatif.workload import Workload as Workload
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
