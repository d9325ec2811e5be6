"""Services that the simulator rejects, because its replicas are chosen or built otherwise."""

from __future__ import annotations

from typing import Any

import pytest
from support.whatif import calibration, requests

import workbench as wb
from workbench.errors import SettingError
from workbench.whatif.simulator import simulate


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"routing": "session"}, "routing must be one of round_robin.* got 'session'"),
        ({"routing": "kv_aware"}, "routing must be one of round_robin.* got 'kv_aware'"),
        ({"disaggregated": wb.Disaggregated()}, "disaggregated must be left out in a simulation"),
    ],
)
def test_it_is_rejected_in_one_sentence(fields: dict[str, Any], problem: str) -> None:
    spec = wb.ServiceSpec(model=wb.ModelSpec(**fields))
    with pytest.raises(SettingError, match=problem):
        simulate(spec, requests((0.0, 8, 2)), calibration())
