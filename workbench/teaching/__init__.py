"""Simulations and figures that explain batching and paging."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench._lazy import lazy_names

if TYPE_CHECKING:
    from workbench.teaching import batching as batching
    from workbench.teaching import paging as paging
    from workbench.teaching.figures import batching_figure as batching_figure
    from workbench.teaching.figures import paging_figure as paging_figure
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
