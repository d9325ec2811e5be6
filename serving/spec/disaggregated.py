"""Prefill and decode of one model on separate replicas."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from serving.spec.base import Strict
from serving.spec.scaling import ScalingSpec

CONNECTORS = {
    "nixl": "NixlConnector",
    "lmcache": "LMCacheConnectorV1",
    "example": "ExampleConnector",
}
"""vLLM's class of each KV connector."""

PACKAGES = {"nixl": ("nixl", "nixl"), "lmcache": ("lmcache", "lmcache")}
"""The module that a connector imports, and the package that has it."""

STORAGE = "shared_storage_path"
"""Option of the example connector: the folder through which both sides exchange their blocks."""


class Side(Strict):
    """The replicas of one side. A field that is left out has the model's value."""

    scaling: ScalingSpec = Field(
        default_factory=ScalingSpec,
        description="Number of replicas, at least 1, and when it changes.",
    )
    num_cpus: float | None = Field(None, gt=0, description="CPUs of each engine worker.")
    num_gpus: float | None = Field(
        None, gt=0, le=1, description="GPUs of each engine worker, 1 or a fraction of one."
    )
    memory_gib: float | None = Field(None, gt=0, description="Memory of a replica, in GiB.")
    tensor_parallel_size: int | None = Field(
        None, ge=1, description="Engine workers that share every layer of the model."
    )
    pipeline_parallel_size: int | None = Field(
        None, ge=1, description="Pipeline stages, each with a part of the layers."
    )
    kv_cache_gib: float | None = Field(None, gt=0, description="KV cache of a CPU worker, in GiB.")
    engine_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Arguments of vLLM, added to those of the model."
    )

    @model_validator(mode="after")
    def _check_replicas(self) -> Self:
        if self.scaling.min_replicas == 0:
            raise ValueError(
                "scaling.min_replicas must be at least 1 on both sides of a disaggregated model, "
                "got 0; a request needs both sides, so raise it"
            )
        return self

    def fields(self) -> dict[str, Any]:
        """Return the fields that replace those of the model."""
        given = {name: getattr(self, name) for name in type(self).model_fields}
        del given["engine_kwargs"]
        return {name: value for name, value in given.items() if value is not None}


class Disaggregated(Strict):
    """Two groups of replicas: one reads prompts, the other generates, and the KV cache moves."""

    prefill: Side = Field(default_factory=Side, description="Replicas that read prompts.")
    decode: Side = Field(
        default_factory=Side, description="Replicas that generate; they answer the clients."
    )
    connector: Literal["nixl", "lmcache", "example"] = Field(
        "nixl",
        description="What moves the KV cache: nixl (GPU to GPU; needs the package nixl), lmcache, "
        "or example (files in a shared folder, for tests).",
    )
    connector_options: dict[str, Any] = Field(
        default_factory=dict,
        description="vLLM's kv_connector_extra_config; the connector example needs "
        f"{STORAGE}, a folder that every replica can write to.",
    )

    @model_validator(mode="after")
    def _check_storage(self) -> Self:
        path = self.connector_options.get(STORAGE)
        if self.connector == "example" and not (isinstance(path, str) and path.startswith("/")):
            raise ValueError(
                f"connector_options must have {STORAGE!r}, the absolute path of a folder, with "
                f"connector = 'example', got {path!r}; every prompt leaves files there"
            )
        return self

    @property
    def transfer_config(self) -> dict[str, Any]:
        """The ``kv_transfer_config`` of vLLM, for both sides."""
        config: dict[str, Any] = {
            "kv_connector": CONNECTORS[self.connector],
            "kv_role": "kv_both",
        }
        options = self.connector_options
        return config | {"kv_connector_extra_config": options} if options else config
