"""Write runs to files and tracking servers that other tools read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench._lazy import lazy_names

if TYPE_CHECKING:
    from workbench.export.mlflow_server import log_to_mlflow as log_to_mlflow
    from workbench.export.tables import summaries_frame as summaries_frame
    from workbench.export.tables import write_requests as write_requests
    from workbench.export.tables import write_summaries as write_summaries
    from workbench.export.weights_and_biases import log_to_wandb as log_to_wandb
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
