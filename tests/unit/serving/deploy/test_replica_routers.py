"""Routing: what Serve is configured with, and the text of a prompt in the prefix tree."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from serving.deploy.deployments import request_router_config
from serving.deploy.service import serve_variables
from serving.errors import SpecError
from serving.spec.model import ModelSpec
from serving.spec.scaling import ScalingSpec
from serving.spec.service import ServiceSpec
from workbench.loadgen.workers import least_loaded_nodes

FORWARD = "RAY_SERVE_INGRESS_REQUEST_ROUTER_FORWARD_BODY"


def test_an_unknown_policy_is_rejected_with_the_known_ones() -> None:
    with pytest.raises(
        SpecError, match=r"routing must be .*round_robin.*prefix_aware.*got 'random'"
    ):
        ModelSpec(routing="random")


@pytest.mark.parametrize("composed", [False, True])
@pytest.mark.parametrize("routing", ["round_robin", "power_of_two", "prefix_aware"])
def test_every_policy_is_a_request_router_of_ray_serve(routing: Any, composed: bool) -> None:
    from ray._common.utils import import_attr
    from ray.serve._private.request_router import RequestRouter

    config = request_router_config(ModelSpec(routing=routing), composed=composed)
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
    ],
)
def test_the_proxy_forwards_bodies_only_for_prefix_aware_routing(
    routing: Any, sleeps: bool, forwards: bool
) -> None:
    scaling = ScalingSpec(min_replicas=0) if sleeps else ScalingSpec()
    spec = ServiceSpec(model=ModelSpec(routing=routing, scaling=scaling))
    assert (FORWARD in serve_variables(spec)) is forwards


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
