"""The presets of MLPerf Inference, against the text of its rules."""

from __future__ import annotations

import re

import numpy as np
import pytest
from support.records import record

from workbench.errors import SettingError
from workbench.experiments.mlperf import LIMITS_MS, mlperf_load, mlperf_slo
from workbench.metrics.summary import summarize
from workbench.workload.arrivals import Poisson
from workbench.workload.prompts import RandomPrompts
from workbench.workload.schedule import offsets

RULES = """
Llama3.1-8B | Conversational category: TTFT/TPOT: 2000 ms/100 ms. Interactive category: TTFT/TPOT: 500 ms/30 ms.
Llama2-70b | Conversational category: TTFT/TPOT: 2000 ms/200 ms. Interactive category: TTFT/TPOT: 450 ms/40 ms.
Llama3.1-405B | Server: TTFT/TPOT: 6000 ms/175 ms. Interactive: TTFT/TPOT: 4500 ms/80 ms.
Mixtral-8x7B | TTFT/TPOT: 2000 ms/200 ms.
DeepSeek-r1 | Server: TTFT/TPOT: 2000 ms/80 ms. Interactive: TTFT/TPOT: 1500 ms/15 ms.
GPT-OSS-120B | Server: TTFT/TPOT: 3000 ms/80 ms. Interactive: TTFT/TPOT: 2000 ms/20 ms.
"""  # noqa: E501 - cells of the table of the Datacenter suite, inference_rules.adoc at ac93e89


def test_limits_are_those_of_the_rules() -> None:
    published = {
        line.split(" | ")[0].lower(): [
            tuple(map(float, pair)) for pair in re.findall(r"TTFT/TPOT: (\d+) ms/(\d+) ms", line)
        ]
        for line in RULES.strip().splitlines()
    }
    assert {model: list(limits.values()) for model, limits in LIMITS_MS.items()} == published


def test_ttft_counts_from_the_schedule() -> None:
    slo = mlperf_slo("llama2-70b", "interactive")
    assert slo.target == 0.99
    late = record(1.0, 1.1, 1.13, scheduled_s=0.6)  # 100 ms after the send, 500 ms after it was due
    on_time = record(1.0, 1.1, 1.13, scheduled_s=0.9)
    assert summarize([late, on_time], slo=slo).slo_attainment == 0.5


def test_unknown_model_and_category() -> None:
    with pytest.raises(SettingError, match=r"model must be one of llama3.1-8b, .*, got 'gpt-2'"):
        mlperf_slo("gpt-2")
    with pytest.raises(SettingError, match="category must be one of server for mixtral-8x7b"):
        mlperf_slo("mixtral-8x7b", "interactive")


def test_scenario_is_ten_minutes_of_poisson_arrivals() -> None:
    load = mlperf_load(20, RandomPrompts(input=8, output=8), seed=3)
    assert isinstance(load.arrivals, Poisson)
    rng = np.random.default_rng(0)
    times = np.array(list(offsets(load.arrivals, rng, duration_s=load.duration_s, count=None)))
    assert 590 < times[-1] < 600
    gaps = np.diff(times)
    assert gaps.mean() == pytest.approx(1 / 20, rel=0.05)
    assert gaps.std() == pytest.approx(1 / 20, rel=0.05), "as of exponential gaps"
    with pytest.raises(SettingError, match="at least 600 in this scenario, got 60"):
        mlperf_load(1, RandomPrompts(input=8, output=8), duration_s=60)
