"""A local cluster: its environment, its CPUs, and a start that fails."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from serving.cluster import local_head
from serving.cluster.local_head import (
    inherited_environment,
    logical_cpus,
    own_environment,
    start_head,
)
from serving.cluster.ports import Ports
from serving.errors import ClusterError
from serving.spec.model import ModelSpec
from serving.spec.scaling import ScalingSpec
from serving.spec.service import ServiceSpec
from serving.spec.tenants import KEY_VARIABLE


def test_two_clusters_share_neither_files_nor_ports(tmp_path: Path) -> None:
    with closing(Ports()) as first_ports, closing(Ports()) as second_ports:
        first = own_environment(tmp_path / "first", first_ports)
        second = own_environment(tmp_path / "second", second_ports)
    assert first.keys() == second.keys()
    assert len({value for name, value in first.items() if "PORT" in name}) == 8
    for name in first:
        assert first[name] != second[name], name
        if "PORT" not in name:
            assert Path(first[name]).is_relative_to(tmp_path / "first")


@pytest.mark.parametrize(
    ("model", "minimum"),
    [
        ({}, 8),
        ({"num_cpus": 4, "scaling": ScalingSpec(max_replicas=6)}, 24),
        ({"num_cpus": 3, "tensor_parallel_size": 2, "pipeline_parallel_size": 2}, 12),
    ],
)
def test_there_are_cpus_for_every_replica(model: dict[str, Any], minimum: int) -> None:
    assert logical_cpus(ServiceSpec(model=ModelSpec(**model))) >= minimum


def test_the_clusters_processes_do_not_inherit_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sk-a-key-of-enough-length")
    assert KEY_VARIABLE not in inherited_environment()
    assert inherited_environment()["PATH"] == os.environ["PATH"]


class TestFailedStart:
    """Ray gives a head 30 s to start, which is too short on a busy machine."""

    def attempts(self, monkeypatch: pytest.MonkeyPatch, log: str) -> list[str]:
        """The logs of the attempts that have been made, each of which fails."""
        made: list[str] = []

        def start_supervisor(spec: Any, ports: Ports) -> tuple[None, str]:
            made.append(log)
            ports.close()
            return None, log

        monkeypatch.setattr(local_head, "_start_supervisor", start_supervisor)
        monkeypatch.setattr(local_head, "use_token", lambda create: None)
        return made

    def test_a_timeout_is_retried_and_then_blamed_on_the_machine(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = self.attempts(monkeypatch, "The current node timed out during startup. This ...")
        with pytest.raises(ClusterError, match="in 3 attempts: the machine is busy"):
            start_head(None)
        assert len(made) == 3

    def test_any_other_failure_is_reported_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made = self.attempts(monkeypatch, "ValueError: no such option")
        with pytest.raises(ClusterError, match="no such option"):
            start_head(None)
        assert len(made) == 1
