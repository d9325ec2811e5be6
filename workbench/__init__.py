"""The LLM serving workbench: deploy a service, send load to it, measure it, show the result.

About 40 core names are in this package; the rest is in namespaces such as ``wb.figures``. All of
them are loaded when first used, so that ``import workbench`` takes milliseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench._lazy import lazy_names

if TYPE_CHECKING:
    __version__: str
    from serving.errors import LeaseError as LeaseError
    from serving.errors import WorkbenchError as WorkbenchError
    from serving.spec.disaggregated import Disaggregated as Disaggregated
    from serving.spec.disaggregated import Side as Side
    from serving.spec.limits import Limits as Limits
    from serving.spec.model import ModelSpec as ModelSpec
    from serving.spec.pipeline import PipelineSpec as PipelineSpec
    from serving.spec.scaling import ScalingSpec as ScalingSpec
    from serving.spec.service import ServiceSpec as ServiceSpec
    from serving.spec.tenants import Tenant as Tenant
    from workbench import analysis as analysis
    from workbench import autoscaling as autoscaling
    from workbench import baselines as baselines
    from workbench import claims as claims
    from workbench import classroom as classroom
    from workbench import client as client
    from workbench import experiments as experiments
    from workbench import export as export
    from workbench import figures as figures
    from workbench import guardrail as guardrail
    from workbench import router as router
    from workbench import teaching as teaching
    from workbench import tuning as tuning
    from workbench import whatif as whatif
    from workbench.cost.cost import cost_of as cost_of
    from workbench.cost.cost import with_cost as with_cost
    from workbench.cost.prices import Prices as Prices
    from workbench.dashboard.dashboard import Dashboard as Dashboard
    from workbench.display import show as show
    from workbench.endpoints.deployed import Endpoint as Endpoint
    from workbench.endpoints.deployed import deploy as deploy
    from workbench.endpoints.open import open_endpoint as open_endpoint
    from workbench.endpoints.remote import remote as remote
    from workbench.endpoints.running import services as services
    from workbench.experiments.measure import measure as measure
    from workbench.experiments.measure import warm_up as warm_up
    from workbench.loadgen.start import start_live_load as start_live_load
    from workbench.loadgen.start import start_load as start_load
    from workbench.metrics.slo import SLO as SLO
    from workbench.metrics.summary import summarize as summarize
    from workbench.report import write_report as write_report
    from workbench.runs.run import Run as Run
    from workbench.session import Session as Session
    from workbench.telemetry.sampler import Telemetry as Telemetry
    from workbench.workload.arrivals import *  # noqa: F403
    from workbench.workload.prompts import Conversations as Conversations
    from workbench.workload.prompts import FilePrompts as FilePrompts
    from workbench.workload.prompts import FromTrace as FromTrace
    from workbench.workload.prompts import LogNormal as LogNormal
    from workbench.workload.prompts import RandomPrompts as RandomPrompts
    from workbench.workload.prompts import TracePrompts as TracePrompts
    from workbench.workload.prompts import Uniform as Uniform
    from workbench.workload.spec import LoadSpec as LoadSpec
else:
    _load, __dir__, __all__ = lazy_names(__name__)

    def __getattr__(name: str) -> object:
        if name == "__version__":
            from importlib.metadata import version

            return version("llm-serving-workbench")
        return _load(name)
