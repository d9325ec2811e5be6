"""Routing: what Serve is configured with, and the text of a prompt in the prefix tree."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from serving.deploy import preflight
from serving.deploy.deployments import engine_fields, request_router_config, user_config
from serving.deploy.service import serve_variables
from serving.engine.engine_args import environment
from serving.errors import MissingPackageError, SpecError
from serving.spec.baseline import BaselineSpec
from serving.spec.model import ModelSpec
from serving.spec.pipeline import PipelineSpec
from serving.spec.scaling import ScalingSpec
from serving.spec.service import ServiceSpec
from serving.spec.tenants import Tenant
from workbench.loadgen.workers import least_loaded_nodes

FORWARD = "RAY_SERVE_INGRESS_REQUEST_ROUTER_FORWARD_BODY"


def test_an_unknown_policy_is_rejected_with_the_known_ones() -> None:
    with pytest.raises(
        SpecError, match=r"routing must be .*round_robin.*prefix_aware.*got 'random'"
    ):
        ModelSpec(routing="random")


@pytest.mark.parametrize(
    ("routing", "composed"),
    [
        *itertools.product(["round_robin", "power_of_two", "prefix_aware", "session"], (0, 1)),
        ("kv_aware", 0),
    ],
)
def test_every_policy_is_a_request_router_of_ray_serve(routing: Any, composed: int) -> None:
    from ray._common.utils import import_attr
    from ray.serve._private.request_router import RequestRouter

    config = request_router_config(ModelSpec(routing=routing), composed=bool(composed))
    assert issubclass(import_attr(config.request_router_class), RequestRouter)


def test_beyond_the_target_the_load_overrules_the_prefix() -> None:
    model = ModelSpec(routing="prefix_aware", scaling=ScalingSpec(target_ongoing_requests=5))
    kwargs = request_router_config(model, composed=False).request_router_kwargs
    assert kwargs["imbalanced_threshold"] == 5


def test_another_policy_or_health_check_needs_no_new_replicas() -> None:
    plain = ServiceSpec()
    changed = ModelSpec(routing="power_of_two", health_check_period_s=1, health_check_timeout_s=2)
    other = ServiceSpec(model=changed)
    assert other.engine_fingerprint() == plain.engine_fingerprint()
    assert other.fingerprint() != plain.fingerprint()


@pytest.mark.parametrize(
    ("routing", "sleeps", "forwards"),
    [
        (None, False, False),
        ("power_of_two", False, False),
        ("prefix_aware", False, True),
        ("prefix_aware", True, False),
        ("session", False, False),
        ("kv_aware", False, True),
    ],
)
def test_the_proxy_forwards_bodies_only_for_policies_that_compare_prompts(
    routing: Any, sleeps: bool, forwards: bool
) -> None:
    scaling = ScalingSpec(min_replicas=0) if sleeps else ScalingSpec()
    spec = ServiceSpec(model=ModelSpec(routing=routing, scaling=scaling))
    assert (FORWARD in serve_variables(spec)) is forwards


class TestKVAware:
    def test_the_engine_must_start_with_it(self) -> None:
        plain, kv_aware = ServiceSpec(), ServiceSpec(model=ModelSpec(routing="kv_aware"))
        assert kv_aware.engine_fingerprint() != plain.engine_fingerprint()
        fields = engine_fields(kv_aware, kv_aware.model)
        assert fields["routing"] == "kv_aware"
        assert "routing" not in engine_fields(plain, plain.model)
        assert environment(kv_aware.model)["PYTHONHASHSEED"] == "0"
        assert "PYTHONHASHSEED" not in environment(plain.model)

    @pytest.mark.slow
    def test_ray_serve_recognizes_it_in_the_replica(self) -> None:
        """In a process of its own, which imports vLLM."""
        code = (
            "from serving.engine.engine_args import llm_config;"
            "from serving.spec.model import ModelSpec;"
            "from ray.llm._internal.serve.routing_policies.kv_aware.kv_aware_router import"
            " is_kv_aware;"
            "plain, kv = llm_config(ModelSpec()), llm_config(ModelSpec(routing='kv_aware'));"
            "assert is_kv_aware(kv) and not is_kv_aware(plain);"
            "assert kv.engine_kwargs['kv_events_config']['enable_kv_cache_events'] is True;"
            "assert 'kv_events_config' not in plain.engine_kwargs"
        )
        subprocess.run([sys.executable, "-c", code], check=True, timeout=200)

    def test_it_needs_ai_dynamo(self, monkeypatch: pytest.MonkeyPatch) -> None:
        spec = ServiceSpec(model=ModelSpec(routing="kv_aware"))
        monkeypatch.setattr(preflight, "find_spec", lambda name: None)
        with pytest.raises(MissingPackageError, match="'ai-dynamo', which is not installed"):
            preflight.check_spec(spec)
        monkeypatch.setattr(preflight, "find_spec", lambda name: name)
        preflight.check_spec(spec)

    def test_it_needs_the_direct_path_and_vllm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(preflight, "find_spec", lambda name: name)
        sleeps = ModelSpec(routing="kv_aware", scaling=ScalingSpec(min_replicas=0))
        with pytest.raises(SpecError, match="'kv_aware' needs a single model with"):
            preflight.check_spec(ServiceSpec(model=sleeps))
        with pytest.raises(SpecError, match="'kv_aware' needs vLLM"):
            preflight.check_spec(BaselineSpec(model=ModelSpec(routing="kv_aware")))

    def test_it_does_not_know_the_ranks_of_a_group(self) -> None:
        with pytest.raises(SpecError, match="must not be 'kv_aware' with data_parallel_size = 2"):
            ModelSpec(routing="kv_aware", accelerator="gpu", data_parallel_size=2)


class TestSessions:
    def test_the_gate_knows_whether_a_router_reads_them(self) -> None:
        for routing, sessions in (("session", True), ("prefix_aware", False), (None, False)):
            spec = ServiceSpec(model=ModelSpec(routing=routing))
            access = user_config(spec, (Tenant(name="a", key_hash="0" * 64),))["access"]
            assert access["sessions"] is sessions

    def test_one_model_of_a_pipeline_is_enough(self) -> None:
        models = (ModelSpec(source="nano"), ModelSpec(routing="session"))
        assert PipelineSpec(models=models).uses_sessions

    def test_it_needs_no_new_replicas(self) -> None:
        spec = ServiceSpec(model=ModelSpec(routing="session"))
        assert spec.engine_fingerprint() == ServiceSpec().engine_fingerprint()

    def test_a_session_keeps_its_replica(self) -> None:
        """Ray Serve's own router, built from the configuration, on a ring of four replicas."""
        from ray.serve._private.common import DeploymentID, ReplicaID
        from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter

        config = request_router_config(ModelSpec(routing="session"), composed=False)
        assert config.get_request_router_class() is ConsistentHashRouter
        router = object.__new__(ConsistentHashRouter)
        router._deployment_id = DeploymentID(name="m")
        router.initialize_state(**config.request_router_kwargs)
        replicas = frozenset(ReplicaID(str(n), router._deployment_id) for n in range(4))
        router._rebuild_ring(replicas)
        chosen = [router._lookup_ranked_replicas(f"s-{n}")[0] for n in range(400)]
        assert chosen == [router._lookup_ranked_replicas(f"s-{n}")[0] for n in range(400)]
        assert min(Counter(chosen).values()) > 40


class TestTextOfAPrompt:
    def text(self, prompt: Any) -> str:
        from serving.deploy.replica_routers import PrefixAware

        return PrefixAware._normalize_prompt_to_string(object.__new__(PrefixAware), prompt)

    def test_token_ids_share_a_prefix_as_they_would_as_text(self) -> None:
        first, second = self.text([5, 300, 0xD801, 7]), self.text([5, 300, 0xD801, 8])
        assert len(first) == 4
        assert first[:3] == second[:3]
        assert first[3] != second[3]
        first.encode()  # A surrogate could not be encoded.

    def test_text_and_messages_are_as_in_ray(self) -> None:
        assert self.text("abc") == "abc"
        assert self.text([{"role": "user", "content": "hi"}]) == "hi"

    def test_an_empty_prompt_has_a_character(self) -> None:
        assert len(self.text([])) == 1


@pytest.mark.parametrize(
    ("heads", "replicas", "places"),
    [
        ({"h": True, "a": False, "b": False}, {}, ["a", "b"]),
        ({"h": True, "a": False, "b": False}, {"a": 1}, ["b"]),
        ({"h": True, "a": False, "b": False}, {"a": 1, "b": 1}, ["h"]),
        ({"h": True, "a": False, "b": False}, {"h": 1, "a": 2, "b": 1}, ["b"]),
        ({"h": True}, {"h": 3}, ["h"]),
    ],
)
def test_load_workers_use_the_nodes_with_the_fewest_replicas(
    heads: dict[str, bool], replicas: dict[str, int], places: list[str]
) -> None:
    assert least_loaded_nodes(heads, Counter(replicas)) == places
