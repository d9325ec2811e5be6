"""The configurations that a tuning compares: combinations of values of engine arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from serving.spec.base import Frozen
from serving.spec.model import short_hash
from workbench.errors import SettingError

if TYPE_CHECKING:
    import numpy as np

    from serving.spec.service import ServiceSpec

Settings = Mapping[str, Sequence[Any]]
"""The values to try of each engine argument, by vLLM's name. The first value is the default."""

_CUDA_GRAPHS = ("compilation_config", "cudagraph_capture_sizes", "max_cudagraph_capture_size")


class Configuration(Frozen):
    """A value for each engine argument. None keeps what the specification or vLLM sets."""

    settings: dict[str, Any]

    @property
    def engine_kwargs(self) -> dict[str, Any]:
        """The arguments that are set, as `ModelSpec.engine_kwargs` takes them."""
        return {name: value for name, value in self.settings.items() if value is not None}

    @property
    def name(self) -> str:
        """A name for files, different for different settings: readable parts, and a hash."""
        readable = re.sub(r"[^A-Za-z0-9_.-]+", "-", str(self).replace(", ", "_"))
        return f"{readable.strip('-')[:80]}-{short_hash(self.settings)[:8]}"

    def apply(self, spec: ServiceSpec) -> ServiceSpec:
        """Return `spec` with these engine arguments."""
        kwargs = spec.model.engine_kwargs | self.engine_kwargs
        model = spec.model.model_copy(update={"engine_kwargs": kwargs})
        return spec.model_copy(update={"model": model})

    def __str__(self) -> str:
        return ", ".join(f"{name}={shown_value(value)}" for name, value in self.settings.items())


def shown_value(value: Any) -> str:
    """Return a value of a setting as text: "default" for None, JSON for a mapping."""
    if value is None:
        return "default"
    return json.dumps(value, sort_keys=True) if isinstance(value, Mapping) else str(value)


def check_settings(settings: Settings) -> None:
    """Check the form of `settings`.

    Raises:
        SettingError: A setting has no list of values, or a value twice.
    """
    if not settings:
        raise SettingError("settings must name at least one engine argument, got none")
    for name, values in settings.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise SettingError(
                f"settings[{name!r}] must be a list of at least one value, got {values!r}"
            )
        if len({repr(value) for value in values}) < len(values):
            raise SettingError(f"settings[{name!r}] has a value twice: {list(values)}; remove one")


def supported_settings(
    settings: Settings, accelerator: str
) -> tuple[dict[str, list[Any]], list[str]]:
    """Return the settings that the platform supports, and a message for each value left out.

    A setting of which at most one value is left is removed: it is what the platform does anyway.

    Args:
        settings: The values of each engine argument.
        accelerator: "cpu" or "gpu".

    Raises:
        SettingError: No setting has two values left, so that there is nothing to compare.
    """
    kept: dict[str, list[Any]] = {}
    messages = []
    for name, values in settings.items():
        reasons = [_unsupported(name, value, accelerator) for value in values]
        left = [value for value, reason in zip(values, reasons, strict=True) if reason is None]
        if len(left) > 1 or len(left) == len(values):
            kept[name] = left
        messages += [
            f"{name}={shown_value(value)} is left out: {reason}"
            for value, reason in zip(values, reasons, strict=True)
            if reason is not None
        ]
    if all(len(values) < 2 for values in kept.values()):
        details = f" ({'; '.join(messages)})" if messages else ""
        raise SettingError(
            "settings must have two values or more of an engine argument, got "
            f"{ {name: list(values) for name, values in settings.items()} }{details}"
        )
    return kept, messages


def _unsupported(name: str, value: Any, accelerator: str) -> str | None:
    """Return why a value cannot be used with this accelerator, or None."""
    if accelerator != "cpu" or value is None:
        return None
    if name == "quantization":
        return "it needs a GPU; on a CPU, give a checkpoint that is quantized already"
    if name in _CUDA_GRAPHS or (name == "enforce_eager" and value is False):
        return "a CPU has no CUDA graphs"
    return None


def make_configurations(
    settings: Settings, *, limit: int | None, rng: np.random.Generator
) -> list[Configuration]:
    """Return the combinations of all values; the first is the default.

    Args:
        settings: The values of each engine argument.
        limit: Maximum number; if there are more combinations, the default and a random choice of
            the others are returned.
        rng: Makes the choice.

    Raises:
        SettingError: The limit is less than 2.
    """
    if limit is not None and limit < 2:
        raise SettingError(f"max_configurations must be at least 2, got {limit}")
    default, *others = _combinations(settings)
    if limit is not None and limit <= len(others):
        chosen = sorted(rng.choice(len(others), size=limit - 1, replace=False).tolist())
        others = [others[number] for number in chosen]
    return [default, *others]


def _combinations(settings: Settings) -> Iterator[Configuration]:
    for values in product(*settings.values()):
        yield Configuration(settings=dict(zip(settings, values, strict=True)))
