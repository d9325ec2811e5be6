"""The latency limits and the Poisson scenario of MLPerf Inference, for use with any endpoint.

Source: MLCommons, "MLPerf Inference Rules" (https://github.com/mlcommons/inference_policies, file
`inference_rules.adoc`, commit ac93e89 of July 2026): the table of scenarios, and the column "Server
latency constraint" of the Datacenter suite. A run with these settings is no MLPerf result. MLPerf
also prescribes data sets, accuracy, the load generator and a review.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from workbench.errors import SettingError
from workbench.metrics.slo import SLO
from workbench.workload.arrivals import Poisson
from workbench.workload.spec import LoadSpec

if TYPE_CHECKING:
    from workbench.workload.prompts import PromptSet

    Category = Literal["server", "interactive"]

LIMITS_MS: dict[str, dict[str, tuple[float, float]]] = {
    "llama3.1-8b": {"server": (2000, 100), "interactive": (500, 30)},
    "llama2-70b": {"server": (2000, 200), "interactive": (450, 40)},
    "llama3.1-405b": {"server": (6000, 175), "interactive": (4500, 80)},
    "mixtral-8x7b": {"server": (2000, 200)},
    "deepseek-r1": {"server": (2000, 80), "interactive": (1500, 15)},
    "gpt-oss-120b": {"server": (3000, 80), "interactive": (2000, 20)},
}
"""TTFT and TPOT in ms by model and category. The rules call the first category of Llama 3.1 8B and
Llama 2 70B "Conversational"."""

SHARE = 0.99
"""Percentile of the limits ("Tail Latency" of the scenarios Server and Interactive)."""

DURATION_S = 600.0
"""Minimum duration of the scenarios Server and Interactive, in seconds."""


def mlperf_slo(model: str, category: Category = "server") -> SLO:
    """Return the latency limits of MLPerf Inference for a model.

    Latencies count from when a request was due, as in MLPerf ("Latency is defined as the time from
    when the LoadGen was scheduled to pass a query"). MLPerf requires the 99th percentile of TTFT
    and that of TPOT to be within their limits; this SLO requires that 99 % of the requests meet
    both, which is at least as strict.

    Args:
        model: A key of `LIMITS_MS`, such as "llama2-70b".
        category: "server" or "interactive".

    Raises:
        SettingError: The rules have no limits for this model and category.
    """
    if model not in LIMITS_MS:
        raise SettingError(f"model must be one of {', '.join(LIMITS_MS)}, got {model!r}")
    limits = LIMITS_MS[model]
    if category not in limits:
        raise SettingError(
            f"category must be one of {', '.join(limits)} for {model}, got {category!r}"
        )
    ttft_ms, tpot_ms = limits[category]
    return SLO(ttft_from_schedule_ms=ttft_ms, tpot_ms=tpot_ms, target=SHARE)


def mlperf_load(rate: float, prompts: PromptSet, **load: Any) -> LoadSpec:
    """Return the load of the scenarios Server and Interactive: 600 s of Poisson arrivals.

    The scenario's metric is the highest rate that meets the limits, which
    `workbench.experiments.highest_load` finds.

    Args:
        rate: Mean arrivals per second.
        prompts: The prompts.
        load: Further fields of `LoadSpec`; `duration_s` must be at least 600.

    Raises:
        SettingError: `duration_s` is shorter than the rules require.
    """
    duration_s = load.pop("duration_s", DURATION_S)
    if not duration_s >= DURATION_S:
        raise SettingError(
            f"duration_s must be at least {DURATION_S:g} in this scenario, got {duration_s:g}; "
            "give a LoadSpec of your own for a shorter load"
        )
    return LoadSpec(arrivals=Poisson(rate=rate), prompts=prompts, duration_s=duration_s, **load)
