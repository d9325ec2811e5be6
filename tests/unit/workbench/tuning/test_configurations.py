"""The combinations of settings, their names, and what a platform does not support."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import numpy as np
import pytest

from serving.spec.model import ModelSpec
from serving.spec.service import ServiceSpec
from workbench.errors import SettingError
from workbench.tuning.configurations import (
    Configuration,
    check_settings,
    make_configurations,
    supported_settings,
)

SETTINGS: dict[str, list[Any]] = {
    "max_num_seqs": [None, 8, 2],
    "enable_prefix_caching": [False, True],
}
NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}


def make(limit: int | None = None, seed: int = 0) -> list[Configuration]:
    return make_configurations(SETTINGS, limit=limit, rng=np.random.default_rng(seed))


def test_all_combinations_with_the_first_values_first() -> None:
    made = [tuple(configuration.settings.values()) for configuration in make()]
    assert made == list(product(*SETTINGS.values()))


def test_a_limit_keeps_the_default_and_a_random_choice() -> None:
    chosen = [make(limit=3, seed=seed) for seed in range(20)]
    assert {len(configurations) for configurations in chosen} == {3}
    assert {str(configurations[0]) for configurations in chosen} == {str(make()[0])}
    others = {str(one) for configurations in chosen for one in configurations[1:]}
    assert others == {str(one) for one in make()[1:]}
    assert make(limit=6) == make(limit=100) == make()


def test_none_keeps_the_value_of_the_specification() -> None:
    model = ModelSpec(engine_kwargs={"max_num_seqs": 4, "block_size": 32})
    spec = ServiceSpec(model=model)
    default, *_, other = make()
    assert default.apply(spec).model.engine_kwargs == {
        "max_num_seqs": 4,
        "block_size": 32,
        "enable_prefix_caching": False,
    }
    assert other.apply(spec).model.engine_kwargs["max_num_seqs"] == 2
    assert spec.model.engine_kwargs == {"max_num_seqs": 4, "block_size": 32}


def test_names_are_file_names_and_differ() -> None:
    settings = {"speculative_config": [None, NGRAM, NGRAM | {"num_speculative_tokens": 4}]}
    made = make_configurations(settings, limit=None, rng=np.random.default_rng(0))
    names = [configuration.name for configuration in [*made, *make()]]
    assert len(set(names)) == 9
    assert all(re.fullmatch(r"\w[\w.-]{1,120}", name) for name in names)


@pytest.mark.parametrize(
    ("name", "values", "left"),
    [
        ("quantization", [None, "fp8"], None),
        ("enforce_eager", [True, False], None),
        ("compilation_config", [None, {"cudagraph_mode": "FULL"}, {"level": 3}], None),
        ("speculative_config", [None, NGRAM], [None, NGRAM]),
        ("enable_chunked_prefill", [True, False], [True, False]),
    ],
)
def test_what_a_cpu_does_not_support_is_left_out(
    name: str, values: list[Any], left: list[Any] | None
) -> None:
    settings = {"max_num_seqs": [8, 2], name: values}
    kept, messages = supported_settings(settings, "cpu")
    assert kept.get(name) == left
    assert len(messages) == (len(values) - 1 if left is None else 0)
    assert all(message.startswith(f"{name}=") for message in messages)
    assert supported_settings(settings, "gpu") == (settings, [])


def test_nothing_left_to_compare_is_rejected() -> None:
    with pytest.raises(SettingError, match=r"two values.*quantization=fp8 is left out: it needs"):
        supported_settings({"quantization": [None, "fp8"], "max_num_seqs": [8]}, "cpu")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "at least one engine argument"),
        ({"max_num_seqs": []}, r"settings\['max_num_seqs'\] must be a list"),
        ({"max_num_seqs": 8}, "must be a list of at least one value, got 8"),
        ({"quantization": "fp8"}, "must be a list of at least one value, got 'fp8'"),
        ({"max_num_seqs": [8, 8]}, "has a value twice"),
    ],
)
def test_settings_without_a_list_are_rejected(settings: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        check_settings(settings)


def test_a_limit_of_one_is_rejected() -> None:
    with pytest.raises(SettingError, match="max_configurations must be at least 2, got 1"):
        make(limit=1)
