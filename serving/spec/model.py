"""One model: its source, the resources of a replica, and how it scales."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from serving.cpu import fast_bfloat16
from serving.errors import SpecError
from serving.models.embedded import EMBEDDED, tiny_model_path
from serving.spec.base import Strict
from serving.spec.disaggregated import Disaggregated, Side
from serving.spec.scaling import ScalingSpec

Routing = Literal["round_robin", "power_of_two", "prefix_aware", "session", "kv_aware"]

READS_PROMPTS = ("prefix_aware", "kv_aware")
"""Policies that compare prompts, which the proxy must show them on the direct path."""

KV_AWARE = "kv_aware"
"""The policy for which the engine itself reports the blocks of its KV cache."""

TINY = "tiny"
"""The ``source`` of the default embedded model."""

LIVE_FIELDS = {"scaling", "routing", "health_check_period_s", "health_check_timeout_s"}
"""Fields of a ModelSpec that running replicas adopt without a restart."""

MAX_ADAPTERS = 32
"""Adapters of one model. The engine keeps all of them in the memory of each worker's host."""

PREFILL_SUFFIX = "-prefill"
"""Suffix of the name of a deployment of prefill replicas."""

_NAME = r"^[\w./:-]+$"
HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")
"""A model or an adapter of Hugging Face's hub, with or without its owner."""

_SECRET_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|API_?KEY)$")


class ModelSpec(Strict):
    """One model, the resources of one replica, and how it scales."""

    source: str = Field(
        TINY,
        min_length=1,
        description="Hugging Face id, local path, or embedded model: 'tiny' or 'nano' (smaller).",
    )
    id: str | None = Field(
        None,
        pattern=_NAME,
        description="Name that clients use; default: derived from source.",
    )
    accelerator: Literal["cpu", "gpu"] = Field("cpu", description="Device type of the engine.")
    accelerator_type: str | None = Field(
        None, description="Ray's accelerator type, such as H100; default: any GPU."
    )
    num_cpus: float = Field(1, gt=0, description="CPUs of each engine worker.")
    num_gpus: float | None = Field(
        None,
        gt=0,
        le=1,
        description="GPUs of each engine worker, 1 or a fraction of one; default: 1 on a GPU.",
    )
    memory_gib: float | None = Field(
        None, gt=0, description="Memory reserved for a replica, in GiB; default: an estimate."
    )
    tensor_parallel_size: int = Field(
        1, ge=1, description="Engine workers that share every layer of the model."
    )
    pipeline_parallel_size: int = Field(
        1, ge=1, description="Pipeline stages, each with a part of the layers."
    )
    data_parallel_size: int = Field(
        1,
        ge=1,
        description="Replicas that form one group and share the experts of a mixture-of-experts "
        "model.",
    )
    expert_parallel: bool = Field(
        False,
        description="Whether each worker of a mixture-of-experts model holds whole experts, not a "
        "slice of every expert.",
    )
    placement: Literal["PACK", "STRICT_PACK", "SPREAD", "STRICT_SPREAD"] | None = Field(
        None,
        description="Ray's placement strategy for the workers of a replica; default: PACK on GPUs, "
        "STRICT_PACK on CPUs, where all workers run on one node.",
    )
    dtype: str = Field(
        "auto",
        description="Data type of weights and activations; auto is bfloat16, or float32 on a CPU "
        "without bfloat16 instructions.",
    )
    max_model_len: int | None = Field(
        None, ge=16, description="Context length in tokens, at least 16; default: the model's own."
    )
    kv_cache_gib: float = Field(1, gt=0, description="KV cache of a CPU worker, in GiB.")
    engine_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="More arguments of vLLM's engine and of its front end, by vLLM's names.",
    )
    adapters: dict[str, str] = Field(
        default_factory=dict,
        max_length=MAX_ADAPTERS,
        description="LoRA adapters by the name that clients use: a folder or a Hugging Face id, in "
        f"PEFT's format; at most {MAX_ADAPTERS}.",
    )
    disaggregated: Disaggregated | None = Field(
        None,
        description="Prefill and decode on separate replicas, each side with its own scaling and "
        "resources; default: every replica does both.",
    )
    env: dict[str, str] = Field(
        default_factory=dict, description="Environment variables of the engine, without secrets."
    )
    routing: Routing | None = Field(
        None,
        description="Ray Serve's policy that chooses the replica of a request: round_robin, "
        "power_of_two, prefix_aware, session (by the header x-session-id), or kv_aware (needs "
        "ai-dynamo); default: round_robin, or power_of_two in a pipeline or with min_replicas = 0.",
    )
    frontend: Literal["auto", "python", "rust"] = Field(
        "python",
        description="vLLM's HTTP front end: python; rust, which answers plain streams of chats and "
        "completions, with python for all other requests; or auto, which chooses rust if its "
        "program is installed and supports the model.",
    )
    stream_batching_interval_ms: float = Field(
        50,
        ge=0,
        le=10_000,
        description="Milliseconds for which a replica of a pipeline, or of a service that scales "
        "to zero, collects the tokens of a stream before it sends them to the ingress; 0 sends "
        "each at once. A longer interval takes less CPU per token. With more than 64 streams on a "
        "replica the interval grows in proportion, up to 250 ms.",
    )
    health_check_period_s: float = Field(
        5, gt=0, description="Seconds between health checks of a replica's engine."
    )
    health_check_timeout_s: float = Field(
        10,
        gt=0,
        description="Seconds within which an engine must answer a health check; after three "
        "failures in a row its replica is replaced. Make it longer than the longest engine step.",
    )
    scaling: ScalingSpec = Field(
        default_factory=ScalingSpec, description="Number of replicas and when it changes."
    )

    @property
    def model_id(self) -> str:
        """Name that clients put into a request's ``model`` field."""
        return self.id or self.default_id

    @property
    def default_id(self) -> str:
        """Name of the model itself: the embedded model's, or the last part of ``source``."""
        return EMBEDDED.get(self.source) or self.source.rstrip("/").split("/")[-1]

    @property
    def aliases(self) -> tuple[str, ...]:
        """Other names that the model answers to: its hub id, and the last part of that id."""
        if self.embedded or is_local(self.source) or not HUB_ID.match(self.source):
            return ()
        names = dict.fromkeys((self.source, self.source.split("/")[-1]))
        return tuple(name for name in names if name != self.model_id)

    @property
    def path(self) -> str:
        """What vLLM loads: an embedded model's folder, or ``source`` as given."""
        return str(tiny_model_path(name=self.source)) if self.embedded else self.source

    @property
    def embedded(self) -> bool:
        """Whether the model is one of those in this package."""
        return self.source in EMBEDDED

    @property
    def tokenizer(self) -> str:
        """Path or id of the tokenizer: the model's own unless ``engine_kwargs`` names another."""
        return str(self.engine_kwargs.get("tokenizer") or self.path)

    @property
    def resolved_dtype(self) -> str:
        """Data type of weights and activations, with ``auto`` resolved."""
        if self.dtype != "auto":
            return self.dtype
        slow = self.accelerator == "cpu" and not fast_bfloat16()
        return "float32" if slow else "bfloat16"

    @property
    def workers(self) -> int:
        """Engine workers of one replica: tensor- times pipeline-parallel size."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def decode_side(self) -> ModelSpec:
        """The model as its decode replicas run it; the model itself if it is not disaggregated."""
        split = self.disaggregated
        return self if split is None else self.model_copy(update=self._side_fields(split.decode))

    @property
    def prefill_side(self) -> PrefillModel | None:
        """The model as its prefill replicas run it; None if it is not disaggregated."""
        if self.disaggregated is None:
            return None
        own = {name: getattr(self, name) for name in type(self).model_fields}
        fields = own | self._side_fields(self.disaggregated.prefill)
        return PrefillModel.model_construct(**fields)

    def _side_fields(self, side: Side) -> dict[str, Any]:
        assert self.disaggregated is not None
        transfer = {"kv_transfer_config": self.disaggregated.transfer_config}
        kwargs = self.engine_kwargs | side.engine_kwargs | transfer
        return side.fields() | {"engine_kwargs": kwargs, "disaggregated": None}

    def fixed_fields(self) -> dict[str, Any]:
        """Return the fields, as JSON, that running replicas cannot adopt."""
        fields = self.model_dump(mode="json", exclude=LIVE_FIELDS)
        return fields | {"routing": KV_AWARE} if self.routing == KV_AWARE else fields

    @property
    def worker_resources(self) -> dict[str, float]:
        """Ray resources of one engine worker."""
        resources = {"CPU": self.num_cpus}
        if self.accelerator == "gpu":
            resources["GPU"] = self.num_gpus or 1.0
            if self.accelerator_type:
                # As little as Ray itself asks for: this selects nodes and uses nothing up.
                resources[f"accelerator_type:{self.accelerator_type}"] = 0.001
        return resources

    @property
    def placement_strategy(self) -> str:
        """Ray's placement strategy for the workers of a replica."""
        return self.placement or ("STRICT_PACK" if self.accelerator == "cpu" else "PACK")

    @field_validator("engine_kwargs")
    @classmethod
    def _read_chat_template(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Replace the path of a template by its text, which the cluster and a manifest need."""
        template = kwargs.get("chat_template")
        if not isinstance(template, str) or not is_path(template):
            return kwargs
        try:
            text = Path(template).expanduser().read_text(encoding="utf-8")
        except FileNotFoundError:
            return kwargs  # It may be a name of vLLM's, or a file of the cluster.
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise ValueError(f"chat_template = {template!r} cannot be read: {reason}") from None
        if is_path(text):
            raise ValueError(f"chat_template = {template!r} must contain a Jinja template")
        return kwargs | {"chat_template": text}

    @field_validator("adapters")
    @classmethod
    def _check_adapters(cls, adapters: dict[str, str]) -> dict[str, str]:
        for name, path in adapters.items():
            if not re.match(_NAME, name):
                raise ValueError(
                    "must have names of letters, digits and the characters _ . / : -; rename "
                    f"{name!r}"
                )
            if not path:
                raise ValueError(
                    "must have a folder or a Hugging Face id for every name; that of "
                    f"{name!r} is empty"
                )
        return adapters

    @model_validator(mode="after")
    def _check_adapter_names(self) -> Self:
        if own := self.adapters.keys() & {self.model_id, *self.aliases}:
            raise ValueError(
                f"adapters must not have the name {min(own)!r}, which the model itself answers to; "
                "give the adapter another name"
            )
        return self

    @model_validator(mode="after")
    def _check_secrets(self) -> Self:
        for name in self.env:
            if _SECRET_NAME.search(name.upper()):
                raise ValueError(
                    f"env must not contain secrets, got {name}; everyone on the cluster could read "
                    "it there, so set it in the environment of the process that calls deploy"
                )
        return self

    @model_validator(mode="after")
    def _check_cpu(self) -> Self:
        if self.accelerator != "cpu":
            return self
        for name in ("num_gpus", "accelerator_type"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name} must be left out with accelerator = 'cpu', got "
                    f"{getattr(self, name)!r}; remove it or set accelerator = 'gpu'"
                )
        if self.data_parallel_size > 1 or self.expert_parallel:
            name = "data_parallel_size" if self.data_parallel_size > 1 else "expert_parallel"
            raise ValueError(
                f"{name} must be left out with accelerator = 'cpu', got {getattr(self, name)!r}; "
                "vLLM's CPU build cannot share experts among workers, so set accelerator = 'gpu'"
            )
        if self.workers > 1 and self.placement_strategy != "STRICT_PACK":
            raise ValueError(
                f"placement must be STRICT_PACK for the {self.workers} workers of a CPU replica, "
                f"got {self.placement!r}; they run on one node, so remove it or set "
                "accelerator = 'gpu'"
            )
        return self

    @model_validator(mode="after")
    def _check_disaggregated(self) -> Self:
        split = self.disaggregated
        if split is None:
            return self
        if self.scaling != ScalingSpec():
            raise ValueError(
                "scaling must be left out with disaggregated; set disaggregated.prefill.scaling "
                "and disaggregated.decode.scaling"
            )
        if self.data_parallel_size > 1 or self.routing == KV_AWARE:
            name = "routing" if self.routing == KV_AWARE else "data_parallel_size"
            raise ValueError(
                f"{name} must not be {getattr(self, name)!r} with disaggregated; choose another "
                "value, or leave disaggregated out"
            )
        for kwargs in (self.engine_kwargs, split.prefill.engine_kwargs, split.decode.engine_kwargs):
            if "kv_transfer_config" in kwargs:
                raise ValueError(
                    "engine_kwargs must not have kv_transfer_config with disaggregated; set "
                    "disaggregated.connector and disaggregated.connector_options"
                )
        self._check_sides(split)
        return self

    def _check_sides(self, split: Disaggregated) -> None:
        """Apply the checks of a model's resources to each side."""
        for name, side in (("prefill", split.prefill), ("decode", split.decode)):
            try:
                ModelSpec(**self.model_dump(exclude={"scaling"}) | self._side_fields(side))
            except SpecError as error:
                raise ValueError(f"disaggregated.{name}: {error}") from None

    @model_validator(mode="after")
    def _check_parallel(self) -> Self:
        if self.data_parallel_size > 1 and self.placement is not None:
            raise ValueError(
                f"placement must be left out with data_parallel_size = {self.data_parallel_size}, "
                f"got {self.placement!r}; Ray Serve places these replicas as one group"
            )
        if self.data_parallel_size > 1 and self.routing == KV_AWARE:
            raise ValueError(
                f"routing must not be 'kv_aware' with data_parallel_size = "
                f"{self.data_parallel_size}; Ray Serve's router does not support such a "
                "group, so choose another routing"
            )
        if self.workers > 1 and self.num_gpus not in (None, 1.0):
            raise ValueError(
                f"num_gpus must be 1 with {self.workers} parallel workers, got {self.num_gpus}; "
                "each of them needs a whole GPU"
            )
        return self


class PrefillModel(ModelSpec):
    """The prefill side of a disaggregated model."""


def is_local(source: str) -> bool:
    """Return whether a model or an adapter is a folder here, not an id or a URL."""
    return source.startswith(("/", ".", "~")) or Path(source).exists()


def absolute(source: str) -> str:
    """Return the absolute path of a folder that is here; an id, a URL or another path as it is."""
    folder = Path(source).expanduser()
    return str(folder.resolve()) if folder.is_dir() else source


def is_path(template: str) -> bool:
    """Return whether vLLM takes this chat template for a path, not for its text."""
    return not any(character in template for character in "{}\n")


def served_names(models: Sequence[ModelSpec]) -> dict[str, str]:
    """Return every name that a client may use, and the id of the model that answers to it.

    Ids and the names of adapters come before aliases. An alias that several models have, such as
    the hub id of a model that is deployed twice, names none of them.

    Raises:
        ValueError: Two models have one id, or one name is given to an adapter and to another model.
    """
    names: dict[str, str] = {}
    for model in models:
        for name in (model.model_id, *model.adapters):
            if name in names:
                raise ValueError(
                    f"models must have unique names, but {names[name]!r} and {model.model_id!r} "
                    f"both answer to {name!r}; change the id of a model or the name of an adapter"
                )
            names[name] = model.model_id
    counts = Counter(alias for model in models for alias in model.aliases)
    aliases = {
        alias: model.model_id for model in models for alias in model.aliases if counts[alias] == 1
    }
    return aliases | names


def short_hash(value: Any) -> str:
    """Return a hash of JSON-compatible data, 16 hexadecimal digits, the same in every process."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def deployment_name(model: ModelSpec) -> str:
    """Return the name of the model's deployment in Serve's status and metrics."""
    name = model.model_id.replace("/", "--").replace(".", "_")
    return f"{name}{PREFILL_SUFFIX}" if isinstance(model, PrefillModel) else name


def capacity(model: ModelSpec) -> int:
    """Return how many requests a model may hold at once, ongoing or queued, over all replicas."""
    scaling = model.scaling
    return scaling.max_ongoing_requests * scaling.max_replicas + scaling.max_queued_requests
