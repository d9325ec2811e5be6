"""Disaggregated prefill and decode: models and loads of both variants, transfers of samples."""

from __future__ import annotations

from typing import Any

import pytest

from serving.errors import SpecError
from serving.spec.model import ModelSpec
from serving.spec.scaling import ScalingSpec
from workbench.experiments.disaggregation import DisaggregationTrial, kv_transfers
from workbench.records import DeploymentSample, ReplicaSample, Sample
from workbench.workload.arrivals import Poisson
from workbench.workload.prompts import RandomPrompts
from workbench.workload.spec import LoadSpec


def trial(**fields: Any) -> DisaggregationTrial:
    return DisaggregationTrial(**{"rates": [1.0]} | fields)


class TestModels:
    MODEL = ModelSpec(source="org/model", num_cpus=2, max_model_len=64)

    def test_both_variants_have_the_same_replicas_and_model(self) -> None:
        models = trial(replicas=4).models(self.MODEL, "/kv")
        assert list(models) == ["colocated", "split"]
        split = models["split"].disaggregated
        assert split is not None
        counts = [
            (side.scaling.min_replicas, side.scaling.max_replicas)
            for side in (split.prefill, split.decode)
        ]
        assert counts == [(2, 2), (2, 2)]
        colocated = models["colocated"]
        assert colocated.disaggregated is None
        assert (colocated.scaling.min_replicas, colocated.scaling.max_replicas) == (4, 4)
        for model in models.values():
            assert (model.source, model.num_cpus) == ("org/model", 2)
            assert model.max_model_len == 1024

    def test_replicas_of_a_layout_with_this_context_stay(self) -> None:
        layout = ModelSpec(max_model_len=1024, scaling=ScalingSpec(max_replicas=2))
        models = trial().models(layout, "/kv")
        assert models["colocated"].fixed_fields() == layout.fixed_fields()
        assert models["split"].fixed_fields() != layout.fixed_fields()

    def test_the_example_connector_uses_the_folder_unless_another_is_given(self) -> None:
        def options(**fields: Any) -> dict[str, Any]:
            split = trial(**fields).models(self.MODEL, "/kv")["split"].disaggregated
            assert split is not None
            return split.connector_options

        other = {"shared_storage_path": "/mnt/all"}
        assert options() == {"shared_storage_path": "/kv"}
        assert options(connector_options=other) == other
        assert options(connector="nixl") == {}


class TestLoads:
    def test_every_load_has_its_rate_and_a_seed_of_its_own(self) -> None:
        planned = list(trial(rates=[0.5, 2], repeats=2, duration_s=3).loads(seed=7))
        assert [(p.rate, p.repeat, p.load.seed) for p in planned] == [
            (0.5, 1, 7),
            (0.5, 2, 8),
            (2.0, 1, 9),
            (2.0, 2, 10),
        ]

    def test_a_load_is_open_loop_with_fixed_lengths(self) -> None:
        load = trial(input_tokens=300, output_tokens=8, duration_s=3).load(2, seed=1)
        assert load == LoadSpec(
            arrivals=Poisson(rate=2),
            prompts=RandomPrompts(input=300, output=8),
            duration_s=3,
            seed=1,
        )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"replicas": 3}, "multiple of 2"),
        ({"replicas": 0}, "or equal to 2, got 0"),
        ({"rates": []}, "at least 1 item"),
        ({"rates": [1, 0]}, "greater than 0"),
        ({"output_tokens": 1}, "or equal to 2, got 1"),
        ({"input_tokens": 1000}, "at most max_model_len = 1024, got 1032"),
        ({"rate": 1}, "is not a field"),
        ({"connector": "files"}, "'nixl', 'lmcache' or 'example'"),
    ],
)
def test_an_invalid_trial_is_refused_in_one_sentence(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError) as caught:
        trial(**fields)
    assert len(str(caught.value).splitlines()) == 1
    assert words in str(caught.value)


def sample(
    replica: str, transfers: int | None, seconds: float | None = None, size: int | None = None
) -> ReplicaSample:
    return ReplicaSample(
        time_s=0.0,
        deployment="m",
        replica=replica,
        node="n",
        prompt_tokens=1,
        kv_transfers=transfers,
        kv_transfer_s=seconds,
        kv_transfer_bytes=size,
    )


class TestTransfers:
    def test_only_those_between_the_first_and_last_sample_count(self) -> None:
        samples: list[Sample] = [
            DeploymentSample(time_s=0.0, deployment="m", target=1),
            sample("a", 10, 1.0, 100 * 2**20),
            sample("b", None),  # nothing before the first transfer
            sample("a", 12, 1.25, 104 * 2**20),
            sample("b", 2, 0.75, 8 * 2**20),
            ReplicaSample(time_s=1.0, deployment="m", replica="a", node="n"),  # no metrics
        ]
        moved = kv_transfers(samples)
        assert moved is not None
        assert moved == (4, 1.0, 12 * 2**20)  # 2 of a and 2 of b
        assert (moved.mean_ms, moved.mean_mib) == (250.0, 3.0)

    def test_none_without_a_report(self) -> None:
        assert kv_transfers([]) is None
        assert kv_transfers([sample("a", None), sample("a", None)]) is None
        assert kv_transfers([sample("a", 3, 1.0, 5), sample("a", 3, 1.0, 5)]) is None
