"""Specifications of baselines."""

from __future__ import annotations

from typing import Any

import pytest

from serving.errors import SpecError
from serving.spec.baseline import BaselineSpec, OneAtATime, StaticBatches, strategies
from serving.spec.model import ModelSpec
from serving.spec.scaling import ScalingSpec
from serving.spec.service import ServiceSpec


class TestSpec:
    def test_baseline_beside_a_service_has_the_same_model(self) -> None:
        kwargs = {"load_format": "dummy", "max_num_seqs": 8}
        scaling = ScalingSpec(max_ongoing_requests=99)
        adapters = {"pirate": "org/pirate"}
        own = {"engine_kwargs": kwargs, "adapters": adapters, "frontend": "auto"}
        model = ModelSpec(scaling=scaling, num_cpus=2, **own)
        service = ServiceSpec(name="llm", model=model, port=8123)
        baseline = BaselineSpec.from_service(service, OneAtATime())
        assert (baseline.name, baseline.route_prefix, baseline.port) == ("llm-one", "/one", 0)
        assert baseline.model.engine_kwargs == {"load_format": "dummy"}
        assert baseline.model.frontend == "python"
        assert baseline.model.model_copy(update=own) == model

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            ({"tensor_parallel_size": 2}, "runs on one device"),
            ({"scaling": ScalingSpec(min_replicas=0)}, "cannot scale to zero"),
            ({"adapters": {"pirate": "org/pirate"}}, "serves no LoRA adapters, got pirate"),
            ({"frontend": "rust"}, "has a server of its own, got 'rust'"),
            (
                {"engine_kwargs": {"max_num_seqs": 8}},
                r"load_format and tokenizer, got max_num_seqs = 8",
            ),
        ],
    )
    def test_unsupported_fields_are_refused(self, model: Any, message: str) -> None:
        with pytest.raises(SpecError, match=message):
            BaselineSpec(model=ModelSpec(**model))

    def test_strategy_changes_the_engine_fingerprint_and_scaling_does_not(self) -> None:
        static, other = BaselineSpec(), BaselineSpec(strategy=StaticBatches(batch_size=8))
        assert static.engine_fingerprint() != other.engine_fingerprint()
        more = BaselineSpec(model=ModelSpec(scaling=ScalingSpec(max_replicas=2)))
        assert more.engine_fingerprint() == static.engine_fingerprint()

    def test_kinds_and_labels_are_distinct(self) -> None:
        by_kind = strategies(7)
        assert {name: strategy.kind for name, strategy in by_kind.items()} == {
            name: name for name in by_kind
        }
        assert len({strategy.label for strategy in by_kind.values()}) == 4
        assert "7" in by_kind["static"].label

    def test_replica_itself_reserves_the_gpu(self) -> None:
        from serving.deploy.app import application
        from serving.spec.tenants import Tenant, key_hash

        model = ModelSpec(accelerator="gpu", num_gpus=0.5, num_cpus=2)
        owner = Tenant(name="owner", key_hash=key_hash("sk-" + "x" * 40))
        deployment = application(BaselineSpec(model=model), (owner,))._bound_deployment
        assert deployment.ray_actor_options["num_gpus"] == 0.5
        assert deployment.ray_actor_options["num_cpus"] == 2
