"""Does a service fit, is its port free: against hand-made nodes and really bound sockets."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from serving.cluster import connection, ports
from serving.cluster.connection import describe_connection, own_environment
from serving.cluster.ports import Ports, check_port, free_port
from serving.deploy.preflight import check_fit
from serving.errors import ClusterError, PortTakenError, ResourcesError
from serving.spec.model import ModelSpec
from serving.spec.scaling import ScalingSpec
from serving.spec.service import ServiceSpec

GIB = 2**30
LAPTOP = {"CPU": 8.0, "memory": 16.0 * GIB, "object_store_memory": 4.0 * GIB}
GPU_NODE = {"CPU": 32.0, "GPU": 2.0, "memory": 64.0 * GIB, "accelerator_type:H100": 1.0}
OTHER_GPU_NODE = {"CPU": 16.0, "GPU": 1.0, "memory": 32.0 * GIB, "accelerator_type:L4": 1.0}
CLUSTER: list[Mapping[str, Any]] = [LAPTOP, GPU_NODE, OTHER_GPU_NODE]


def of(**model: Any) -> ServiceSpec:
    return ServiceSpec(model=ModelSpec(**model))


class TestFit:
    @pytest.mark.parametrize(
        ("model", "nodes", "named"),
        [
            (
                {"tensor_parallel_size": 2, "num_cpus": 6},
                [{"CPU": 8.0}, {"CPU": 8.0}],
                ["2 engine worker(s)", "'STRICT_PACK'", "the largest takes 1"],
            ),
            (
                {"accelerator": "gpu", "tensor_parallel_size": 4, "placement": "STRICT_PACK"},
                [GPU_NODE, GPU_NODE],
                ["4 engine worker(s)", "'STRICT_PACK'", "the largest takes 2"],
            ),
            (
                {"accelerator": "gpu", "tensor_parallel_size": 2, "placement": "STRICT_SPREAD"},
                [LAPTOP, GPU_NODE],
                ["2 engine worker(s)", "'STRICT_SPREAD'", "1 node(s) take one"],
            ),
            (
                {"accelerator": "gpu", "data_parallel_size": 3},
                [GPU_NODE],
                ["3 engine worker(s)", "2 GPUs"],
            ),
        ],
    )
    def test_a_placement_that_can_never_be(
        self, model: dict[str, Any], nodes: list[Mapping[str, Any]], named: list[str]
    ) -> None:
        with pytest.raises(ResourcesError) as caught:
            check_fit(of(**model), nodes)
        for part in named:
            assert part in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("model", "nodes"),
        [
            ({"accelerator": "gpu", "tensor_parallel_size": 4}, [GPU_NODE, GPU_NODE]),
            (
                {"accelerator": "gpu", "tensor_parallel_size": 2, "placement": "STRICT_SPREAD"},
                [OTHER_GPU_NODE, GPU_NODE],
            ),
            ({"accelerator": "gpu", "data_parallel_size": 3}, [GPU_NODE, GPU_NODE]),
        ],
    )
    def test_a_placement_that_can(
        self, model: dict[str, Any], nodes: list[Mapping[str, Any]]
    ) -> None:
        check_fit(of(**model), nodes)

    @pytest.mark.parametrize(
        "model",
        [
            {},
            {"num_cpus": 32},
            {"num_cpus": 0.1},
            {"tensor_parallel_size": 2, "num_cpus": 16},
            {"memory_gib": 64},
            {"accelerator": "gpu"},
            {"accelerator": "gpu", "num_gpus": 0.5},
            {"accelerator": "gpu", "num_gpus": 0.1},
            {"accelerator": "gpu", "accelerator_type": "L4"},
            {"accelerator": "gpu", "tensor_parallel_size": 2, "accelerator_type": "H100"},
            {"accelerator": "gpu", "pipeline_parallel_size": 3},
        ],
    )
    def test_what_fits_passes(self, model: dict[str, Any]) -> None:
        check_fit(of(**model), CLUSTER)

    @pytest.mark.parametrize(
        ("model", "nodes", "named"),
        [
            (
                {"accelerator": "gpu"},
                [LAPTOP],
                ["model.num_gpus = 1", "0 GPUs", "1 node(s)"],
            ),
            (
                {"accelerator": "gpu", "tensor_parallel_size": 4},
                CLUSTER,
                ["model.num_gpus = 1", "4 engine worker(s)", "3 GPUs", "3 node(s)"],
            ),
            (
                {"accelerator": "gpu", "tensor_parallel_size": 2, "pipeline_parallel_size": 2},
                CLUSTER,
                ["4 engine worker(s)", "3 GPUs"],
            ),
            (
                {"accelerator": "gpu", "num_gpus": 0.5},
                [LAPTOP, {"CPU": 4.0, "GPU": 0.25}],
                ["model.num_gpus = 0.5", "0.25 GPUs", "2 node(s)"],
            ),
            (
                {"num_cpus": 33},
                CLUSTER,
                ["model.num_cpus = 33", "56 CPUs", "3 node(s)"],
            ),
            (
                {"num_cpus": 20, "tensor_parallel_size": 2},
                CLUSTER,
                ["model.num_cpus = 20", "2 engine worker(s)", "56 CPUs"],
            ),
            (
                {"accelerator": "gpu", "accelerator_type": "A100"},
                CLUSTER,
                ["model.accelerator_type = 'A100'", "H100, L4"],
            ),
            (
                {"accelerator": "gpu", "accelerator_type": "A100"},
                [{"CPU": 8.0, "GPU": 1.0}],
                ["model.accelerator_type = 'A100'", "has none"],
            ),
            (
                {"memory_gib": 65},
                CLUSTER,
                ["model.memory_gib = 65", "64.0 GiB"],
            ),
            ({}, [], ["model.num_cpus = 1", "0 CPUs", "0 node(s)"]),
            ({"memory_gib": 1}, [{"CPU": 1.0}], ["model.memory_gib = 1", "0.0 GiB"]),
        ],
    )
    def test_what_can_never_fit_names_field_value_and_what_there_is(
        self, model: dict[str, Any], nodes: list[Mapping[str, Any]], named: list[str]
    ) -> None:
        with pytest.raises(ResourcesError) as caught:
            check_fit(of(**model), nodes)
        for part in named:
            assert part in str(caught.value)

    def test_one_worker_never_spreads_over_nodes(self) -> None:
        halves: list[Mapping[str, Any]] = [{"CPU": 4.0, "GPU": 0.5}, {"CPU": 4.0, "GPU": 0.5}]
        with pytest.raises(ResourcesError, match="num_gpus = 1"):
            check_fit(of(accelerator="gpu"), halves)
        with pytest.raises(ResourcesError, match="num_cpus = 5"):
            check_fit(of(num_cpus=5), halves)

    @pytest.mark.parametrize(
        "model",
        [
            {"accelerator": "gpu", "num_cpus": 8},
            {"accelerator": "gpu", "memory_gib": 8},
            {"accelerator": "gpu", "accelerator_type": "H100", "num_cpus": 4},
            {"accelerator": "gpu", "num_cpus": 2, "pipeline_parallel_size": 3},
        ],
    )
    def test_all_that_a_worker_needs_is_needed_on_one_node(self, model: dict[str, Any]) -> None:
        # Of each thing alone the cluster has enough.
        nodes: list[Mapping[str, Any]] = [
            {"CPU": 16.0, "memory": 64.0 * GIB},
            {"CPU": 2.0, "GPU": 4.0, "memory": 4.0 * GIB, "accelerator_type:H100": 1.0},
            {"CPU": 4.0, "GPU": 1.0, "memory": 4.0 * GIB - 1},
        ]
        with pytest.raises(ResourcesError, match="on one node") as caught:
            check_fit(of(**model), nodes)
        for name in model.keys() - {"accelerator", "pipeline_parallel_size"}:
            assert f"{name} = {model[name]!r}" in str(caught.value)
        check_fit(of(accelerator="gpu", num_cpus=2, memory_gib=4), nodes)

    def test_workers_of_one_replica_may(self) -> None:
        singles: list[Mapping[str, Any]] = [{"CPU": 4.0, "GPU": 1.0}] * 3
        check_fit(of(accelerator="gpu", tensor_parallel_size=3), singles)
        with pytest.raises(ResourcesError, match="4 engine worker"):
            check_fit(of(accelerator="gpu", tensor_parallel_size=4), singles)

    @pytest.mark.parametrize("share", [0.1, 0.2, 0.25, 0.3, 0.7])
    def test_fractions_are_not_lost_to_rounding(self, share: float) -> None:
        nodes: list[Mapping[str, Any]] = [{"CPU": 8.0, "GPU": share}]
        check_fit(of(accelerator="gpu", num_gpus=share), nodes)
        with pytest.raises(ResourcesError):
            check_fit(of(accelerator="gpu", num_gpus=share + 0.05), nodes)

    def test_three_tenths_hold_three_workers_of_a_tenth(self) -> None:
        assert 0.3 / 0.1 < 3
        check_fit(of(num_cpus=0.1, tensor_parallel_size=3), [{"CPU": 0.3}])
        with pytest.raises(ResourcesError):
            check_fit(of(num_cpus=0.1, tensor_parallel_size=4), [{"CPU": 0.3}])


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


class TestPorts:
    def test_one_that_listens_is_taken(self, taken: int) -> None:
        with pytest.raises(PortTakenError) as caught:
            check_port("127.0.0.1", taken)
        said = str(caught.value)
        assert f"port = {taken}" in said
        assert "'127.0.0.1'" in said
        assert "port = 0" in said

    def test_one_that_listens_on_loopback_is_taken_on_every_address(self, taken: int) -> None:
        with pytest.raises(PortTakenError):
            check_port("0.0.0.0", taken)

    def test_a_free_one_passes_and_stays_free(self) -> None:
        port = free_port()
        check_port("127.0.0.1", port)
        check_port("127.0.0.1", port)
        with socket.create_server(("127.0.0.1", port)):
            pass

    def test_one_whose_last_connections_linger_is_free(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            with socket.create_connection(("127.0.0.1", port)) as client:
                accepted, _ = listener.accept()
                accepted.close()  # the side that closes first keeps the port in TIME_WAIT
                client.recv(1)
        check_port("127.0.0.1", port)

    @pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
    def test_an_address_that_is_not_this_machines_is_refused(self, host: str) -> None:
        with pytest.raises(PortTakenError, match=host):
            check_port(host, free_port())

    def test_free_ports_differ_and_are_of_those_that_no_connection_gets(self) -> None:
        ports = {free_port() for _ in range(20)}
        given = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
        assert len(ports) > 1
        assert all(port < int(given[0]) for port in ports)

    def test_no_port_is_free_where_the_address_is_not_this_machines(self) -> None:
        with pytest.raises(ClusterError, match="is not an address of this machine"):
            free_port("192.0.2.1")

    def test_a_taken_port_is_refused_before_anything_starts(
        self, taken: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        with pytest.raises(PortTakenError, match=f"port = {taken}"):
            describe_connection(ServiceSpec(port=taken), None)
        assert describe_connection(ServiceSpec(port=0), None) == "starting Ray"

    def test_on_an_attached_cluster_the_port_is_not_ours_to_check(
        self, taken: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        assert (
            describe_connection(ServiceSpec(port=taken), "a:1")
            == "connecting to the Ray cluster at a:1"
        )
        monkeypatch.setenv("RAY_ADDRESS", "b:2")
        assert (
            describe_connection(ServiceSpec(port=taken), None)
            == "connecting to the Ray cluster at b:2"
        )


class TestALocalCluster:
    def test_its_files_and_ports_are_its_own(self, tmp_path: Path) -> None:
        with closing(Ports()) as mine, closing(Ports()) as others:
            one = own_environment(tmp_path / "one", mine)
            other = own_environment(tmp_path / "other", others)
        assert one.keys() == other.keys()
        assert len({value for name, value in one.items() if "PORT" in name}) == 8
        for name in one:
            assert one[name] != other[name], name
            if "PORT" not in name:
                assert Path(one[name]).is_relative_to(tmp_path / "one")

    def test_its_ports_are_kept_before_anything_listens(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ports.random, "shuffle", lambda blocks: None)
        with closing(Ports()) as first:
            with closing(Ports()) as second:
                assert second.endpoint != first.endpoint
            # As the supervisor holds it: the one who asked is gone.
            command = [sys.executable, "-c", "input()"]
            holder = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[first.fileno()])
        with closing(Ports()) as third:
            assert third.endpoint != first.endpoint
        holder.communicate(b"\n")
        with closing(Ports()) as fourth:
            assert fourth.endpoint == first.endpoint

    @pytest.mark.parametrize("host", ["127.0.0.1", ""])
    def test_ports_that_something_else_uses_are_left_alone(
        self, host: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ports.random, "shuffle", lambda blocks: None)
        with closing(Ports()) as first:
            pass
        with socket.socket() as replica:
            replica.bind((host, first.endpoint + 2))
            with closing(Ports()) as second:
                assert second.endpoint != first.endpoint

    def test_a_host_that_is_full_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ports, "_are_free", lambda block: False)
        with pytest.raises(ClusterError, match="24 clusters or more"):
            Ports()

    @pytest.mark.parametrize(
        ("model", "least"),
        [
            ({}, 8),
            ({"num_cpus": 4, "scaling": ScalingSpec(max_replicas=6)}, 24),
            ({"num_cpus": 3, "tensor_parallel_size": 2, "pipeline_parallel_size": 2}, 12),
        ],
    )
    def test_every_replica_finds_its_cpus(self, model: dict[str, Any], least: int) -> None:
        assert connection._logical_cpus(of(**model)) >= least


class TestASlowStart:
    """Ray's own limit of 30 s for a head to come up, on a machine that is busy."""

    def starts(self, monkeypatch: pytest.MonkeyPatch, words: str) -> list[str]:
        tried: list[str] = []

        def supervised(spec: Any, ports: Ports) -> tuple[None, str]:
            tried.append(words)
            ports.close()
            return None, words

        monkeypatch.setattr(connection, "_supervised", supervised)
        monkeypatch.setattr(connection, "_use_token", lambda create: None)
        return tried

    def test_it_is_tried_again_and_the_machine_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tried = self.starts(monkeypatch, "The current node timed out during startup. This ...")
        with pytest.raises(ClusterError, match="3 times: the machine is busy"):
            connection._start(None)
        assert len(tried) == 3

    def test_any_other_failure_is_told_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tried = self.starts(monkeypatch, "ValueError: no such option")
        with pytest.raises(ClusterError, match="no such option"):
            connection._start(None)
        assert len(tried) == 1
