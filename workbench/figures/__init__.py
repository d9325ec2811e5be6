"""Turn data frames into plotly figures; nothing here measures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench._lazy import lazy_names

if TYPE_CHECKING:
    from workbench.figures.claims import break_even_figure as break_even_figure
    from workbench.figures.claims import fleets_figure as fleets_figure
    from workbench.figures.claims import paired_comparison_figure as paired_comparison_figure
    from workbench.figures.claims import ratio_figure as ratio_figure
    from workbench.figures.claims import users_figure as users_figure
    from workbench.figures.cluster import cluster_timeline as cluster_timeline
    from workbench.figures.compare import comparison_figure as comparison_figure
    from workbench.figures.compare import latency_overlay as latency_overlay
    from workbench.figures.curve import throughput_latency_curve as throughput_latency_curve
    from workbench.figures.engine import engine_pressure_figure as engine_pressure_figure
    from workbench.figures.engine import kv_cache_figure as kv_cache_figure
    from workbench.figures.engine import waste_figure as waste_figure
    from workbench.figures.latency import latency_distributions as latency_distributions
    from workbench.figures.latency import throughput_over_time as throughput_over_time
    from workbench.figures.layouts import disaggregation_figure as disaggregation_figure
    from workbench.figures.layouts import layout_memory_figure as layout_memory_figure
    from workbench.figures.layouts import layouts_figure as layouts_figure
    from workbench.figures.pareto import frontier as frontier
    from workbench.figures.replicas import policy_figure as policy_figure
    from workbench.figures.replicas import reaction_waterfall as reaction_waterfall
    from workbench.figures.replicas import replica_panel as replica_panel
    from workbench.figures.requests import request_timeline as request_timeline
    from workbench.figures.search import search_figure as search_figure
    from workbench.figures.sides import throughput_of_sides as throughput_of_sides
    from workbench.figures.stages import stage_frame as stage_frame
    from workbench.figures.stages import stage_shares as stage_shares
    from workbench.figures.stages import stage_waterfall as stage_waterfall
    from workbench.figures.whatif import frontier_rows as frontier_rows
    from workbench.figures.whatif import prediction_overlay as prediction_overlay
    from workbench.figures.whatif import settings_frontier as settings_frontier
    from workbench.figures.whatif import simulated_day as simulated_day
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
