"""The same load through `vllm bench serve`'s own code and through ours, on the real engine."""

from __future__ import annotations

import sys

import pytest
from support.paths import BENCHMARKS

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(400)]


def test_medians_agree_with_vllms_own_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import agreement

    try:
        found = agreement.run(pairs=4, requests=64)
    finally:
        for name in ("agreement", "_vllm", "_report"):
            sys.modules.pop(name, None)
    for name in ("ttft", "tpot", "e2el"):
        # Five times the benchmark's bound, or the interval where that is wider: a noisy machine.
        width = max(0.25, found[f"{name}_ratio_high"] - found[f"{name}_ratio_low"])
        assert abs(found[f"{name}_ratio"] - 1) <= width, found
