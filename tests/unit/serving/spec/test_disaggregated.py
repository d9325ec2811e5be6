"""Disaggregated models: the two sides, and what is rejected in one sentence."""

from __future__ import annotations

from typing import Any

import pytest

from serving.errors import SpecError
from serving.spec.baseline import BaselineSpec
from serving.spec.disaggregated import Disaggregated, Side
from serving.spec.model import ModelSpec, PrefillModel, deployment_name
from serving.spec.pipeline import PipelineSpec
from serving.spec.scaling import ScalingSpec
from serving.spec.service import ServiceSpec

STORAGE = {"shared_storage_path": "/mnt/kv"}


def split(**fields: Any) -> Disaggregated:
    return Disaggregated(**{"connector": "example", "connector_options": STORAGE} | fields)


def error_of(make: Any, **fields: Any) -> str:
    with pytest.raises(SpecError) as caught:
        make(**fields)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


class TestSides:
    SPEC = ServiceSpec(
        model=ModelSpec(
            source="org/model",
            accelerator="gpu",
            num_cpus=2,
            engine_kwargs={"seed": 1, "max_num_seqs": 4},
            disaggregated=Disaggregated(
                prefill=Side(tensor_parallel_size=2, engine_kwargs={"max_num_seqs": 8}),
                decode=Side(num_cpus=3, scaling=ScalingSpec(min_replicas=2, max_replicas=5)),
            ),
        )
    )

    def test_each_side_is_a_model_with_its_own_resources_and_scaling(self) -> None:
        decode, prefill = self.SPEC.engines
        assert (decode.workers, decode.num_cpus, decode.scaling.max_replicas) == (1, 3, 5)
        assert (prefill.workers, prefill.num_cpus, prefill.scaling.max_replicas) == (2, 2, 1)
        assert self.SPEC.models == (decode,)

    def test_both_have_the_connector_and_the_arguments_of_the_model(self) -> None:
        transfer = {"kv_connector": "NixlConnector", "kv_role": "kv_both"}
        decode, prefill = (model.engine_kwargs for model in self.SPEC.engines)
        assert decode == {"seed": 1, "max_num_seqs": 4, "kv_transfer_config": transfer}
        assert prefill == {"seed": 1, "max_num_seqs": 8, "kv_transfer_config": transfer}

    def test_their_deployments_have_different_names(self) -> None:
        decode, prefill = self.SPEC.engines
        assert isinstance(prefill, PrefillModel)
        names = [deployment_name(model) for model in (decode, prefill)]
        assert names == ["model", "model-prefill"]
        assert decode.model_id == prefill.model_id == "model"

    def test_scaling_of_a_side_needs_no_new_replicas(self) -> None:
        model = self.SPEC.model
        more = split(prefill=Side(scaling=ScalingSpec(max_replicas=3)))
        one, other = (ServiceSpec(model=ModelSpec(disaggregated=each)) for each in (split(), more))
        for before, after in zip(one.engines, other.engines, strict=True):
            assert one.engine_fingerprint(before) == other.engine_fingerprint(after)
        assert one.fingerprint() != other.fingerprint()
        assert model.disaggregated is not None

    def test_a_replica_reads_its_side_back(self) -> None:
        for side in self.SPEC.engines:
            read = ModelSpec(**side.fixed_fields())
            assert read.engine_kwargs == side.engine_kwargs
            assert read.worker_resources == side.worker_resources

    def test_a_saved_specification_is_read_back(self) -> None:
        assert ServiceSpec(**self.SPEC.model_dump(mode="json")) == self.SPEC

    def test_a_plain_model_has_one_side(self) -> None:
        model = ModelSpec()
        assert model.decode_side is model
        assert model.prefill_side is None
        assert ServiceSpec(model=model).engines == (model,)

    def test_the_options_of_a_connector(self) -> None:
        assert split().transfer_config == {
            "kv_connector": "ExampleConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": STORAGE,
        }


class TestRejected:
    @pytest.mark.parametrize("side", ["prefill", "decode"])
    def test_no_replicas(self, side: str) -> None:
        sleeps = {"scaling": {"min_replicas": 0}}
        message = error_of(Disaggregated, **{side: sleeps})
        assert "scaling.min_replicas must be at least 1 on both sides" in message

    def test_an_unknown_connector(self) -> None:
        assert "connector must be" in error_of(Disaggregated, connector="carrier-pigeon")

    @pytest.mark.parametrize("options", [{}, {"shared_storage_path": "kv"}])
    def test_the_example_connector_without_a_folder(self, options: dict[str, str]) -> None:
        message = error_of(Disaggregated, connector="example", connector_options=options)
        assert "must have 'shared_storage_path', the absolute path" in message

    @pytest.mark.parametrize(
        ("fields", "problem"),
        [
            (
                {"scaling": ScalingSpec(max_replicas=2)},
                "scaling must be left out with disaggregated",
            ),
            ({"routing": "kv_aware"}, "routing must not be 'kv_aware' with disaggregated"),
            (
                {"accelerator": "gpu", "data_parallel_size": 2},
                "data_parallel_size must not be 2 with disaggregated",
            ),
            (
                {"engine_kwargs": {"kv_transfer_config": {}}},
                "engine_kwargs must not have kv_transfer_config",
            ),
        ],
    )
    def test_fields_of_the_model(self, fields: dict[str, Any], problem: str) -> None:
        assert problem in error_of(ModelSpec, disaggregated=split(), **fields)

    def test_resources_of_a_side(self) -> None:
        message = error_of(ModelSpec, disaggregated=split(prefill=Side(num_gpus=1)))
        assert "disaggregated.prefill: num_gpus must be left out" in message

    def test_in_a_pipeline_or_as_a_baseline(self) -> None:
        model = ModelSpec(disaggregated=split())
        assert "must not be disaggregated" in error_of(PipelineSpec, models=(model,))
        assert "disaggregated must be left out" in error_of(BaselineSpec, model=model)
