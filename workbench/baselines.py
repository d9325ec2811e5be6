"""Services on Hugging Face transformers to compare vLLM with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench._lazy import lazy_names

if TYPE_CHECKING:
    from serving.spec.baseline import BaselineSpec as BaselineSpec
    from serving.spec.baseline import Continuous as Continuous
    from serving.spec.baseline import DynamicBatches as DynamicBatches
    from serving.spec.baseline import OneAtATime as OneAtATime
    from serving.spec.baseline import StaticBatches as StaticBatches
    from serving.spec.baseline import strategies as strategies
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
