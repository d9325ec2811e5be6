"""The cluster side: the service's specification, its Serve application and its replicas.

Nothing here depends on Jupyter or imports ``workbench``.
"""

import os

from serving.compat.variables import SERVE_FLAGS

# Ray Serve reads its flags when it is imported, which may happen before a cluster is joined: for a
# manifest, or when a policy is called directly.
os.environ.update(SERVE_FLAGS)
