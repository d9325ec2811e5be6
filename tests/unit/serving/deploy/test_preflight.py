"""Everything that is rejected before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from serving.compat import vllm
from serving.compat.vllm import engine_arguments
from serving.deploy import preflight
from serving.deploy.preflight import (
    OWN_FIELDS,
    check_model,
    check_resources,
    check_running_serve,
    reads_prompts,
)
from serving.engine.engine_args import engine_kwargs
from serving.errors import (
    ClusterError,
    MissingPackageError,
    ModelNotFoundError,
    ResourcesError,
    SpecError,
)
from serving.models.embedded import tiny_model_path
from serving.spec.model import ModelSpec
from serving.spec.scaling import ScalingSpec
from serving.spec.service import ServiceSpec

GIB = 2**30
LAPTOP = {"CPU": 8.0, "memory": 16.0 * GIB, "object_store_memory": 4.0 * GIB}
GPU_NODE = {"CPU": 32.0, "GPU": 2.0, "memory": 64.0 * GIB, "accelerator_type:H100": 1.0}
OTHER_GPU_NODE = {"CPU": 16.0, "GPU": 1.0, "memory": 32.0 * GIB, "accelerator_type:L4": 1.0}
CLUSTER: list[Mapping[str, Any]] = [LAPTOP, GPU_NODE, OTHER_GPU_NODE]


def service(**model: Any) -> ServiceSpec:
    return ServiceSpec(model=ModelSpec(**model))


class TestEngineArguments:
    def test_without_vllm_the_message_has_the_command_that_installs_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(vllm, "find_spec", lambda name: None)
        engine_arguments.cache_clear()
        try:
            with pytest.raises(MissingPackageError, match=r"'vllm' is not installed.*make setup"):
                check_model(ModelSpec(engine_kwargs={"seed": 1}))
        finally:
            engine_arguments.cache_clear()

    @pytest.mark.parametrize(
        ("name", "nearest"),
        [
            ("max_num_seq", "max_num_seqs"),
            ("gpu_memory_utilisation", "gpu_memory_utilization"),
            ("enable_prefix_cachin", "enable_prefix_caching"),
        ],
    )
    def test_an_unknown_argument_is_rejected_with_the_nearest_name(
        self, name: str, nearest: str
    ) -> None:
        with pytest.raises(SpecError) as caught:
            check_model(ModelSpec(engine_kwargs={"seed": 1, name: 17}))
        message = str(caught.value)
        assert f"model.engine_kwargs[{name!r}] = 17" in message
        assert f"Did you mean {nearest!r}?" in message

    def test_an_unknown_argument_that_resembles_none_is_rejected(self) -> None:
        with pytest.raises(SpecError, match="vLLM has no such argument"):
            check_model(ModelSpec(engine_kwargs={"qqqq": 1}))

    @pytest.mark.parametrize(
        ("name", "field"),
        [
            ("model", "model.source"),
            ("served_model_name", "model.id"),
            ("dtype", "model.dtype"),
            ("max_model_len", "model.max_model_len"),
            ("tensor_parallel_size", "model.tensor_parallel_size"),
            ("pipeline_parallel_size", "model.pipeline_parallel_size"),
            ("api_key", "api_key of deploy()"),
        ],
    )
    def test_an_argument_that_a_field_sets_is_rejected_with_that_field(
        self, name: str, field: str
    ) -> None:
        with pytest.raises(SpecError, match=rf"engine_kwargs\['{name}'\]") as caught:
            check_model(ModelSpec(engine_kwargs={name: "x"}))
        assert f"set {field} instead" in str(caught.value)

    def test_every_field_in_a_message_exists(self) -> None:
        fields = {field.removeprefix("model.") for field in OWN_FIELDS.values()}
        elsewhere = {"api_key of deploy()", "the environment variable HF_TOKEN"}
        assert fields - elsewhere <= set(ModelSpec.model_fields)

    def test_known_arguments_reach_vllm(self) -> None:
        given: dict[str, Any] = {"max_num_seqs": 4, "seed": 7, "enforce_eager": False}
        model = ModelSpec(engine_kwargs=given)
        check_model(model)
        assert engine_kwargs(model).items() >= given.items()
        assert model.engine_kwargs == given


class TestModelPath:
    def test_a_path_that_does_not_exist(self, tmp_path: Path) -> None:
        missing = str(tmp_path / "nowhere")
        with pytest.raises(ModelNotFoundError) as caught:
            check_model(ModelSpec(source=missing))
        assert f"model.source = {missing!r} does not exist" in str(caught.value)
        assert "Hugging Face" in str(caught.value)

    def test_a_folder_without_a_model(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFoundError, match=r"has no config\.json"):
            check_model(ModelSpec(source=str(tmp_path)))

    @pytest.mark.parametrize("source", ["./nowhere", "../nowhere", "~/nowhere-at-all", "/nowhere"])
    def test_what_looks_like_a_path_is_a_path(self, source: str) -> None:
        with pytest.raises(ModelNotFoundError, match="does not exist"):
            check_model(ModelSpec(source=source))

    def test_a_relative_folder_that_exists_is_a_path(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "org" / "empty").mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ModelNotFoundError, match=r"has no config\.json"):
            check_model(ModelSpec(source="org/empty"))

    def test_a_model_a_hub_id_and_the_embedded_model_pass(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{}")
        for source in (str(tmp_path), str(tiny_model_path()), "tiny", "org/model-7B"):
            check_model(ModelSpec(source=source))


class TestResources:
    @pytest.mark.parametrize(
        ("model", "nodes", "parts"),
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
    def test_an_impossible_placement_is_rejected(
        self, model: dict[str, Any], nodes: list[Mapping[str, Any]], parts: list[str]
    ) -> None:
        with pytest.raises(ResourcesError) as caught:
            check_resources(service(**model), nodes)
        for part in parts:
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
    def test_a_possible_placement_passes(
        self, model: dict[str, Any], nodes: list[Mapping[str, Any]]
    ) -> None:
        check_resources(service(**model), nodes)

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
    def test_a_replica_that_fits_passes(self, model: dict[str, Any]) -> None:
        check_resources(service(**model), CLUSTER)

    @pytest.mark.parametrize(
        ("model", "nodes", "parts"),
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
    def test_a_replica_that_never_fits_is_rejected_with_field_value_and_what_there_is(
        self, model: dict[str, Any], nodes: list[Mapping[str, Any]], parts: list[str]
    ) -> None:
        with pytest.raises(ResourcesError) as caught:
            check_resources(service(**model), nodes)
        for part in parts:
            assert part in str(caught.value)

    def test_a_single_worker_is_never_spread_over_nodes(self) -> None:
        halves: list[Mapping[str, Any]] = [{"CPU": 4.0, "GPU": 0.5}, {"CPU": 4.0, "GPU": 0.5}]
        with pytest.raises(ResourcesError, match="num_gpus = 1"):
            check_resources(service(accelerator="gpu"), halves)
        with pytest.raises(ResourcesError, match="num_cpus = 5"):
            check_resources(service(num_cpus=5), halves)

    @pytest.mark.parametrize(
        "model",
        [
            {"accelerator": "gpu", "num_cpus": 8},
            {"accelerator": "gpu", "memory_gib": 8},
            {"accelerator": "gpu", "accelerator_type": "H100", "num_cpus": 4},
            {"accelerator": "gpu", "num_cpus": 2, "pipeline_parallel_size": 3},
        ],
    )
    def test_a_worker_needs_all_of_its_resources_on_one_node(self, model: dict[str, Any]) -> None:
        # The cluster has enough of each resource alone.
        nodes: list[Mapping[str, Any]] = [
            {"CPU": 16.0, "memory": 64.0 * GIB},
            {"CPU": 2.0, "GPU": 4.0, "memory": 4.0 * GIB, "accelerator_type:H100": 1.0},
            {"CPU": 4.0, "GPU": 1.0, "memory": 4.0 * GIB - 1},
        ]
        with pytest.raises(ResourcesError, match="on one node") as caught:
            check_resources(service(**model), nodes)
        for name in model.keys() - {"accelerator", "pipeline_parallel_size"}:
            assert f"{name} = {model[name]!r}" in str(caught.value)
        check_resources(service(accelerator="gpu", num_cpus=2, memory_gib=4), nodes)

    def test_workers_of_one_replica_may_be_spread(self) -> None:
        singles: list[Mapping[str, Any]] = [{"CPU": 4.0, "GPU": 1.0}] * 3
        check_resources(service(accelerator="gpu", tensor_parallel_size=3), singles)
        with pytest.raises(ResourcesError, match="4 engine worker"):
            check_resources(service(accelerator="gpu", tensor_parallel_size=4), singles)

    @pytest.mark.parametrize("share", [0.1, 0.2, 0.25, 0.3, 0.7])
    def test_fractions_are_not_lost_to_rounding(self, share: float) -> None:
        nodes: list[Mapping[str, Any]] = [{"CPU": 8.0, "GPU": share}]
        check_resources(service(accelerator="gpu", num_gpus=share), nodes)
        with pytest.raises(ResourcesError):
            check_resources(service(accelerator="gpu", num_gpus=share + 0.05), nodes)

    def test_three_tenths_of_a_cpu_hold_three_workers_of_a_tenth(self) -> None:
        assert 0.3 / 0.1 < 3
        check_resources(service(num_cpus=0.1, tensor_parallel_size=3), [{"CPU": 0.3}])
        with pytest.raises(ResourcesError):
            check_resources(service(num_cpus=0.1, tensor_parallel_size=4), [{"CPU": 0.3}])


SLEEPS = ScalingSpec(min_replicas=0)


class TestRunningServe:
    """A Serve that runs already, described as its own details describe it."""

    @pytest.fixture(autouse=True)
    def proxies(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two kinds of proxy, told apart by their names."""
        classes = {"haproxy": "HAProxyManager", "forwarding": "HAProxyManager"}
        monkeypatch.setattr(preflight, "actor_class", lambda name: classes.get(name, "ProxyActor"))
        monkeypatch.setattr(preflight, "forwards_bodies", lambda name: name == "forwarding")

    def details(self, *proxies: str) -> dict[str, Any]:
        return {
            "http_options": {"host": "127.0.0.1", "port": 8000},
            "proxies": {str(i): {"actor_name": name} for i, name in enumerate(proxies)},
        }

    @pytest.mark.parametrize("port", [0, 8000])
    def test_the_same_address_or_any_port_is_accepted(self, port: int) -> None:
        assert check_running_serve(ServiceSpec(port=port), self.details("haproxy")) == 8000

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"port": 8001}, "port = 8001, .* with port = 8000"),
            ({"host": "0.0.0.0"}, "host = '0.0.0.0', .* with host = '127.0.0.1'"),
        ],
    )
    def test_another_address_is_rejected(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(ClusterError, match=message):
            check_running_serve(ServiceSpec(**fields), self.details("haproxy"))

    def test_direct_streaming_needs_haproxy(self) -> None:
        with pytest.raises(ClusterError, match="RAY_SERVE_ENABLE_HA_PROXY=1"):
            check_running_serve(ServiceSpec(), self.details("haproxy", "python"))
        assert check_running_serve(service(scaling=SLEEPS), self.details("python")) == 8000

    def test_prefix_aware_routing_needs_a_proxy_that_forwards_bodies(self) -> None:
        spec = service(routing="prefix_aware")
        assert check_running_serve(spec, self.details("forwarding")) == 8000
        with pytest.raises(ClusterError, match="INGRESS_REQUEST_ROUTER_FORWARD_BODY=1"):
            check_running_serve(spec, self.details("forwarding", "haproxy"))
        sleeping = service(routing="prefix_aware", scaling=SLEEPS)
        assert check_running_serve(sleeping, self.details("haproxy")) == 8000


@pytest.mark.parametrize(
    ("routing", "sleeps", "expected"),
    [
        (None, False, False),
        ("power_of_two", False, False),
        ("prefix_aware", False, True),
        ("prefix_aware", True, False),
    ],
)
def test_the_proxy_shows_prompts_only_for_prefix_aware_routing_on_the_direct_path(
    routing: Any, sleeps: bool, expected: bool
) -> None:
    scaling = SLEEPS if sleeps else ScalingSpec()
    assert reads_prompts(service(routing=routing, scaling=scaling)) is expected
