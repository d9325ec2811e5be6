"""Read saved runs and compute tables from them; nothing here sends a request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench._lazy import lazy_names

if TYPE_CHECKING:
    from workbench.analysis.comparable import comparison_notes as comparison_notes
    from workbench.analysis.compare import compare_runs as compare_runs
    from workbench.analysis.compare import differing_parameters as differing_parameters
    from workbench.analysis.compare import pick_sides as pick_sides
    from workbench.analysis.compare import runs_table as runs_table
    from workbench.analysis.disaggregation import disaggregation_frame as disaggregation_frame
    from workbench.analysis.disaggregation import disaggregation_lines as disaggregation_lines
    from workbench.analysis.disaggregation import disaggregation_table as disaggregation_table
    from workbench.analysis.kv_cache import engine_peaks as engine_peaks
    from workbench.analysis.kv_cache import kv_cache_frame as kv_cache_frame
    from workbench.analysis.kv_cache import kv_cache_size as kv_cache_size
    from workbench.analysis.kv_cache import kv_cache_summary as kv_cache_summary
    from workbench.analysis.kv_cache import kv_cache_waste as kv_cache_waste
    from workbench.analysis.kv_cache import request_lengths as request_lengths
    from workbench.analysis.layouts import plan_layouts as plan_layouts
    from workbench.analysis.pareto import frontier_points as frontier_points
    from workbench.analysis.sessions import session_table as session_table
    from workbench.analysis.sessions import turn_table as turn_table
    from workbench.analysis.sessions import turns_frame as turns_frame
    from workbench.analysis.tables import readable as readable
    from workbench.analysis.tables import readable_comparison as readable_comparison
    from workbench.analysis.tables import sides_table as sides_table
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
