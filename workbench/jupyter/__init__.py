"""The part of the JupyterLab extension that runs in the Jupyter server."""

from workbench.jupyter.handlers import (
    _jupyter_server_extension_points as _jupyter_server_extension_points,
)
from workbench.jupyter.handlers import (
    _load_jupyter_server_extension as _load_jupyter_server_extension,
)
